//! Finishing what is prepared, and lost answers: no error code ends a branch.

use unanimous::postgres::{Postgres, PostgresError};
use unanimous::{BranchId, CommitError, DeciderId, DecisionLog, ResourceManager, RunError};
use unanimous_testing::memory::{Journal, JournalLog};
use unanimous_testing::proxy::{Act, Proxy};

use super::{Place, Raw, Two, none, sqlstate, state, why};
use crate::support::{aborted, unknown};

#[tokio::test]
async fn an_unknown_gid_and_a_repeated_one_give_42704() {
    let place = Place::new().await;
    let gid = place.database.name();
    for end in ["commit", "rollback"] {
        assert_eq!(place.raw.says(&format!("{end} prepared '{gid}'")).await, state("42704"));
        assert_eq!(place.raw.says(&format!("begin; prepare transaction '{gid}'")).await, none());
        assert_eq!(place.raw.says(&format!("{end} prepared '{gid}'")).await, none());
        // The answer was lost, and it is asked again: an error, although it was done.
        assert_eq!(place.raw.says(&format!("{end} prepared '{gid}'")).await, state("42704"));
    }
}

/// The server says that it does not know the id, and lists the branch: it is repeated, as where a PREPARE lands between the two.
#[tokio::test]
async fn an_unknown_id_ends_no_branch_that_is_listed() {
    let place = Place::new().await;
    let (proxy, url) = place.proxy();
    let store = Postgres::from_url("a", &url).unwrap();
    let id = BranchId { transaction: super::disk().open().owner().transaction(1), decider: DeciderId::Log, number: 0 };
    place.raw.says(&format!("begin; insert into t values ('a'); prepare transaction '{id}'")).await.unwrap();
    for how in ["COMMIT PREPARED 'u", "ROLLBACK PREPARED 'u"] {
        let rule = proxy.on(how, Act::Replace(how.replace("'u", "'x")));
        let ended = if how.starts_with('C') { store.commit(&id).await } else { store.rollback(&id).await };
        assert!(rule.met());
        assert_eq!(sqlstate(&ended.unwrap_err()), "42704");
        assert_eq!(place.raw.prepared().await, [id.to_string()]);
    }
    store.commit(&id).await.unwrap();
    assert_eq!(place.rows().await, ["a"]);
}

#[tokio::test]
async fn inside_a_transaction_it_cannot_be_finished_25001() {
    let place = Place::new().await;
    let gid = place.database.name();
    assert_eq!(place.raw.says(&format!("begin; prepare transaction '{gid}'")).await, none());
    for end in ["commit", "rollback"] {
        assert_eq!(place.raw.says("begin").await, none());
        assert_eq!(place.raw.says(&format!("{end} prepared '{gid}'")).await, state("25001"));
        assert_eq!(place.raw.says("rollback").await, none());
        // A message of several statements is a transaction too.
        assert_eq!(place.raw.says(&format!("select 1; {end} prepared '{gid}'")).await, state("25001"));
    }
    assert_eq!(place.raw.says(&format!("rollback prepared '{gid}'")).await, none());
}

/// The transaction's number tells how it ended, to every role; so an operator's own decision can be seen.
#[tokio::test]
async fn pg_xact_status_tells_how_a_prepared_transaction_ended() {
    let place = Place::new().await;
    let role = format!("app_{}", place.database.name());
    assert_eq!(place.raw.says(&format!("create role {role} login")).await, none());
    let ordinary = Raw::open(&place.database.url_as(&role)).await;
    let gid = place.database.name();
    for (end, status) in [("commit", "committed"), ("rollback", "aborted")] {
        assert_eq!(place.raw.says("begin").await, none());
        let number = place.raw.value("select pg_current_xact_id()").await;
        assert_eq!(place.raw.says(&format!("prepare transaction '{gid}'")).await, none());
        let ask = format!("select pg_xact_status('{number}')");
        assert_eq!(ordinary.value(&ask).await, "in progress");
        assert_eq!(place.raw.says(&format!("{end} prepared '{gid}'")).await, none());
        assert_eq!(ordinary.value(&ask).await, status);
    }
}

/// Whatever the first row says: who loses must read it.
#[tokio::test]
async fn a_second_decision_row_gets_23505_also_when_the_first_says_abort() {
    let place = Place::new().await;
    assert_eq!(place.raw.says("create table decision (id text primary key, commit boolean)").await, none());
    let (recovery, carrier) = (place.raw().await, place.raw().await);
    assert_eq!(recovery.says("begin; insert into decision values ('1', false)").await, none());
    assert_eq!(carrier.says("begin; insert into t values ('work')").await, none());
    let pid = carrier.pid;
    let row = "insert into decision values ('1', true)";
    let (refused, ()) = tokio::join!(carrier.says(row), async {
        place.raw.until_waiting(pid).await;
        assert_eq!(recovery.says("commit").await, none());
    });
    assert_eq!(refused, state("23505"));
    // ON CONFLICT DO NOTHING says nothing of it, nor does a read in the same statement's snapshot: a second statement does.
    let quiet = place.raw().await;
    assert_eq!(quiet.says("insert into decision values ('1', true) on conflict do nothing returning 1").await, none());
    assert_eq!(quiet.value("select commit from decision where id = '1'").await, "f");
}

/// The session ends, and what was asked of it is not answered: no answer, not a no.
#[tokio::test]
async fn a_terminated_session_says_57p01() {
    let place = Place::new().await;
    let mut raw = place.raw().await;
    assert_eq!(place.raw.value(&format!("select pg_terminate_backend({})", raw.pid)).await, "t");
    assert_eq!(raw.ended().await, "57P01");
}

/// It is done and the answer is lost, or never asked: repeated on another connection, and confirmed by the list.
#[tokio::test]
async fn a_lost_answer_of_phase_two_is_asked_again() {
    let two = Two::new().await;
    let (proxy, url) = two.b.proxy();
    let (a, b) = (two.a.store("a"), Postgres::from_url("b", &url).unwrap());
    let manager = two.manager(&a, &b).await;
    for (key, act) in [("1", Act::LoseAnswer), ("2", Act::LoseQuestion), ("3", Act::Cut)] {
        let tx = manager.begin();
        tx.join(&a).await.unwrap().execute("insert into t values ($1)", &[&key]).await.unwrap();
        tx.join(&b).await.unwrap().execute("insert into t values ($1)", &[&key]).await.unwrap();
        let rule = proxy.on("COMMIT PREPARED", act);
        assert_eq!(tx.commit().await.unwrap().pending, 0);
        assert!(rule.met());
        assert_eq!(two.prepared().await, [[""; 0]; 2]);
    }
    assert_eq!(two.rows().await, [["1", "2", "3"], ["1", "2", "3"]]);
    assert_eq!(two.log.unfinished(), []);
}

/// Both sessions are gone between the vote and the decision.
#[tokio::test]
async fn phase_two_does_not_need_the_session_that_prepared() {
    let two = Two::new().await;
    let (a, b) = two.stores();
    let log = JournalLog::new(two.log(), &Journal::default());
    let manager = unanimous::TransactionManager::builder(log.clone())
        .resource(a.clone())
        .resource(b.clone())
        .build()
        .await
        .unwrap();
    let tx = manager.begin();
    let mut pids = Vec::new();
    for store in [&a, &b] {
        let branch = tx.join(store).await.unwrap();
        branch.batch_execute("insert into t values ('x')").await.unwrap();
        pids.push(branch.query_one("select pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0));
    }
    let hold = log.hold();
    let commit = tx.commit();
    hold.reached().await;
    for pid in pids {
        assert_eq!(two.a.raw.value(&format!("select pg_terminate_backend({pid}, 5000)")).await, "t");
    }
    hold.release();
    assert_eq!(commit.await.unwrap().pending, 0);
    assert_eq!(two.rows().await, [["x"], ["x"]]);
}

/// One store fails in phase two: the other one is committed all the same, nothing is rolled back, and the caller is told what is pending.
#[tokio::test]
async fn after_the_decision_nothing_is_rolled_back() {
    let two = Two::new().await;
    let (proxy, url) = two.b.proxy();
    let (a, b) = (two.a.store("a"), Postgres::from_url("b", &url).unwrap());
    let log = JournalLog::new(two.log(), &Journal::default());
    let manager = unanimous::TransactionManager::builder(log.clone())
        .resource(a.clone())
        .resource(b.clone())
        .phase_two_wait(std::time::Duration::from_millis(300))
        .build()
        .await
        .unwrap();
    let tx = manager.begin();
    tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
    tx.join(&b).await.unwrap().batch_execute("insert into t values ('b')").await.unwrap();
    let hold = log.hold();
    let commit = tx.commit();
    hold.reached().await;
    // The second server is away from here on.
    let nowhere = Proxy::start(1).unwrap();
    proxy.lead_to(nowhere.port());
    proxy.cut();
    hold.release();
    assert_eq!(commit.await.unwrap().pending, 1);
    assert_eq!(two.rows().await, [vec!["a"], vec![]]);
    assert_eq!(two.b.raw.prepared().await.len(), 1);
    proxy.lead_to(two.b.database.cluster().port());
    two.b.raw.until("select v from t", &["b"]).await;
    two.b.raw.until("select count(*) from pg_prepared_xacts where database = current_database()", &["0"]).await;
}

/// A commit in one phase has nobody who could be asked.
#[tokio::test]
async fn a_one_phase_commit_whose_answer_is_lost_is_unknown_and_not_repeated() {
    let two = Two::new().await;
    let (proxy, url) = two.a.proxy();
    let (a, b) = (Postgres::from_url("a", &url).unwrap(), two.b.store("b"));
    let manager = two.manager(&a, &b).await;
    for (act, expected) in [(Act::LoseQuestion, &[][..]), (Act::LoseAnswer, &["a"])] {
        let rule = proxy.on("; COMMIT", act);
        let mut attempts = 0;
        let done = manager.run(5, |tx| {
            attempts += 1;
            let a = a.clone();
            async move {
                tx.join(&a).await?.batch_execute("insert into t values ('a')").await?;
                Ok(())
            }
        });
        let error = done.await.unwrap_err();
        assert!(rule.met());
        assert!(matches!(error, RunError::Commit { source: CommitError::Unknown { .. }, .. }), "{error:?}");
        assert_eq!(attempts, 1);
        assert_eq!(two.a.rows().await, expected);
    }
}

/// 40003 is of the class of conflicts, and yet nobody knows; the others say that the session ends.
#[tokio::test]
async fn a_code_that_says_nothing_of_the_outcome_is_unknown_in_one_phase() {
    for code in ["40003", "57P01", "57P02", "57P03", "57P05", "25P03", "08006"] {
        let two = Two::new().await;
        two.a.failing(code).await;
        let (a, b) = two.stores();
        let manager = two.manager(&a, &b).await;
        let tx = manager.begin();
        tx.join(&a).await.unwrap().batch_execute("insert into failing values ('a')").await.unwrap();
        let error = unknown(tx.commit().await);
        assert_eq!(sqlstate(&error), code);
        assert!(!error.is_retryable());
    }
}

/// The same codes at the vote: not a yes, and it is fenced, as it may be prepared.
#[tokio::test]
async fn a_code_that_says_nothing_of_the_outcome_is_fenced_at_the_vote() {
    for code in ["40003", "57P01", "08006"] {
        let two = Two::new().await;
        two.b.failing(code).await;
        let (a, b) = two.stores();
        let manager = two.manager(&a, &b).await;
        let tx = manager.begin();
        tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
        let branch = tx.join(&b).await.unwrap();
        branch.batch_execute("insert into failing values ('b')").await.unwrap();
        let pid: i32 = branch.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
        drop(branch);
        let error = aborted(tx.commit().await);
        assert_eq!(sqlstate(&error), code);
        assert!(!error.is_retryable());
        assert_eq!(two.a.raw.says(&format!("select pid from pg_stat_activity where pid = {pid}")).await, none());
        two.is_empty().await;
    }
}

/// Conflicts are worth repeating, wherever the server finds them.
#[tokio::test]
async fn conflicts_at_the_vote_and_at_the_commit_are_worth_repeating() {
    for code in ["40001", "40P01", "55P03"] {
        let two = Two::new().await;
        two.b.failing(code).await;
        let (a, b) = two.stores();
        let manager = two.manager(&a, &b).await;
        for alone in [false, true] {
            let tx = manager.begin();
            if !alone {
                tx.join(&a).await.unwrap().batch_execute("insert into t values ('a')").await.unwrap();
            }
            tx.join(&b).await.unwrap().batch_execute("insert into failing values ('b')").await.unwrap();
            let error = aborted(tx.commit().await);
            assert_eq!((sqlstate(&error).as_str(), error.is_retryable()), (code, true));
            assert!(matches!(why(&error), PostgresError::Postgres { .. }));
        }
        two.is_empty().await;
    }
}

/// An earlier run prepared and decided, and was killed before phase two.
#[tokio::test]
async fn the_next_start_finishes_what_was_decided_and_rolls_back_what_was_not() {
    let two = Two::new().await;
    let (a, b) = two.stores();
    let owner = two.manager(&a, &b).await.owner();
    let prepare = async |place: &Place, sequence: u64, number: u16| {
        let gid = BranchId { transaction: owner.transaction(sequence), decider: DeciderId::Log, number };
        let work = format!("begin; insert into t values ('{sequence}'); prepare transaction '{gid}'");
        assert_eq!(place.raw.says(&work).await, none());
    };
    use unanimous::ResourceManager;
    let participants = vec![
        unanimous::Participant { number: 0, resource: "a".into(), store: Some(a.identity().await.unwrap()) },
        unanimous::Participant { number: 1, resource: "b".into(), store: Some(b.identity().await.unwrap()) },
    ];
    for (sequence, decided) in [(7, true), (8, false)] {
        prepare(&two.a, sequence, 0).await;
        prepare(&two.b, sequence, 1).await;
        if decided {
            let transaction = owner.transaction(sequence);
            two.log.plant(unanimous::DecisionRecord {
                transaction,
                participants: participants.clone(),
                decided_at: 0,
                note: Default::default(),
            });
        }
    }
    // Not ours: left alone.
    let strange = format!("{} of another program", two.a.database.name());
    assert_eq!(two.a.raw.says(&format!("begin; prepare transaction '{strange}'")).await, none());
    let manager = two.manager(&a, &b).await;
    assert_eq!(manager.in_doubt(), []);
    assert_eq!(two.rows().await, [["7"], ["7"]]);
    assert_eq!(two.prepared().await, [vec![strange.clone()], vec![]]);
    assert_eq!(two.log.unfinished(), []);
    assert_eq!(two.a.raw.says(&format!("rollback prepared '{strange}'")).await, none());
}
