//! What a transaction says of itself, where that can be seen, and what is kept with it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use unanimous::{BoxError, Report};

use crate::support::{Call, Deadlock, Fault, World, aborted};

/// Notes are lines, without the white space around them; the description is the same text.
#[tokio::test(start_paused = true)]
async fn notes_are_lines_of_the_description() {
    let world = World::new();
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    assert_eq!(tx.description(), "");
    tx.note("  one\n");
    tx.handle().note("two");
    tx.note("  ");
    assert_eq!(tx.description(), "one\ntwo");
    tx.set_description("all anew");
    tx.note("three");
    assert_eq!(tx.description(), "all anew\nthree");
    tx.abort().await;
}

/// The user as it is given, or with the path it belongs to.
#[tokio::test(start_paused = true)]
async fn a_user_may_have_a_path() {
    let world = World::new();
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    assert_eq!(tx.user(), "");
    tx.set_user("ada");
    assert_eq!(tx.user(), "ada");
    tx.set_user_at("/", "ada");
    assert_eq!(tx.user(), "/ ada");
    tx.set_user_at("/staff", "bob");
    assert_eq!(tx.user(), "/staff bob");
    tx.abort().await;
}

/// The report has them all, also what hooks have said.
#[tokio::test(start_paused = true)]
async fn annotations_are_in_the_report() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (builder, _log) = world.builder();
    let reports = Arc::new(Mutex::new(Vec::<Report>::new()));
    let seen = reports.clone();
    let manager = builder.observer(move |report| seen.lock().unwrap().push(report.clone())).build().await.unwrap();
    let tx = manager.begin();
    tx.join(&a).await.unwrap().put("row").unwrap();
    tx.set_user_at("/", "ada");
    tx.set_extended_info("request", "17");
    tx.set_extended_info("host", "one");
    tx.set_extended_info("request", "18");
    tx.before_commit(async |tx| {
        tx.note("from a hook");
        Ok(())
    })
    .unwrap();
    let info =
        BTreeMap::from([("host", "one"), ("request", "18")].map(|(name, text)| (name.to_owned(), text.to_owned())));
    assert_eq!(tx.extended_info(), info);
    tx.commit().await.unwrap();
    let reports = reports.lock().unwrap();
    assert_eq!(reports.len(), 1);
    assert_eq!((&*reports[0].note, &*reports[0].user, &reports[0].extended_info), ("from a hook", "/ ada", &info));
}

/// The record of the decision has user and note, also what hooks have said, as much as there is room for.
#[tokio::test(start_paused = true)]
async fn user_and_note_are_in_the_decision() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    for (user, note) in
        [("", ""), ("/ ada", ""), ("", "two\nlines"), ("/ ada", "an order"), ("/ ada", &"ä".repeat(400))]
    {
        let tx = manager.begin();
        for store in [&a, &b] {
            tx.join(store).await.unwrap().put("row").unwrap();
        }
        tx.set_user(user);
        let note = note.to_owned();
        tx.before_commit(async move |tx| {
            tx.note(&note);
            Ok(())
        })
        .unwrap();
        tx.commit().await.unwrap();
    }
    let notes: Vec<_> = world.disk.records().into_iter().map(|record| record.note.to_string()).collect();
    let long = format!("by / ada: {}", "ä".repeat(251));
    assert_eq!(notes, ["", "by / ada", "two\nlines", "by / ada: an order", &long]);
    assert_eq!(long.len(), 512);
}

/// What is traced at a transaction's end is in a span with its id and all that was said of it, within the caller's span. In a process of its
/// own: what other tests' subscribers want decides here whether a span is made.
#[test]
fn annotations_are_in_the_span_of_the_end() {
    const CHILD: &str = "UNANIMOUS_TEST_SPAN_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return a_branch_stays_pending_in_a_span();
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "manager_annotations::annotations_are_in_the_span_of_the_end", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(child.status.success(), "{child:?}");
    let text = String::from_utf8(child.stderr).unwrap();
    let line = text.lines().find(|line| line.contains("the branch is not finished yet")).expect("it is reported");
    let (_, id) = line.split_once("caller:transaction{id=").unwrap_or_else(|| panic!("{line}"));
    let (id, rest) = id.split_once(' ').unwrap();
    assert!(rest.starts_with("user=ada note=an order extended_info={\"request\": \"17\"}}"), "{line}");
    assert!(line.contains(&format!("transaction={id}")), "{line}");
}

fn a_branch_stays_pending_in_a_span() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new();
        let (a, b) = (world.two_phase("a"), world.two_phase("b"));
        let (manager, _log) = world.start().await;
        let tx = manager.begin();
        for store in [&a, &b] {
            tx.join(store).await.unwrap().put("row").unwrap();
        }
        tx.note("an order");
        tx.set_user("ada");
        tx.set_extended_info("request", "17");
        a.fail_always(Call::Commit, Fault::Lost);
        let commit = {
            let _caller = tracing::info_span!("caller").entered();
            tx.commit()
        };
        assert_eq!(commit.await.unwrap().pending, 1);
    });
}

/// Values by type and key, for all handles, until the transaction has ended; hooks and callbacks still see them.
#[tokio::test(start_paused = true)]
async fn data_is_kept_by_type_and_key_until_the_end() {
    let world = World::new();
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let handle = tx.handle();
    let kept = Arc::new(());
    assert!(tx.set_data("key", 1_u32).is_none());
    assert!(handle.set_data("key", "text".to_owned()).is_none(), "another type is another value");
    handle.set_data("kept", kept.clone());
    assert_eq!(handle.data::<u32>("key").as_deref(), Some(&1));
    assert_eq!(tx.set_data("key", 2_u32).as_deref(), Some(&1));
    assert_eq!(tx.data::<String>("key").as_deref().map(String::as_str), Some("text"));
    assert!(tx.data::<u32>("other").is_none() && tx.data::<i64>("key").is_none());
    let seen = Arc::new(Mutex::new(Vec::new()));
    tx.after_commit({
        let seen = seen.clone();
        async move |tx, _| {
            seen.lock().unwrap().push(tx.data::<u32>("key").as_deref().copied());
            Ok(())
        }
    })
    .unwrap();
    tx.after_end({
        let (seen, handle) = (seen.clone(), handle.clone());
        move |_| seen.lock().unwrap().push(handle.data::<u32>("key").as_deref().copied())
    });
    tx.commit().await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [Some(2), Some(2)]);
    assert!(handle.data::<u32>("key").is_none());
    assert_eq!(Arc::strong_count(&kept), 1, "it was dropped although the handle lives on");
    assert!(handle.set_data("late", kept.clone()).is_none());
    assert_eq!(Arc::strong_count(&kept), 1, "nothing is kept any more");
}

/// Whether an error is worth repeating: every branch is asked, not only the first.
#[tokio::test(start_paused = true)]
async fn every_branch_is_asked_whether_an_error_is_retryable() {
    let mut world = World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, _log) = world.start().await;
    let tx = manager.begin();
    let error = BoxError::from("a timeout that only b knows");
    assert!(!tx.is_retryable(&Deadlock) && !tx.is_retryable(&*error));
    tx.join(&a).await.unwrap();
    assert!(tx.is_retryable(&Deadlock) && !tx.is_retryable(&*error));
    b.set_retries_everything(true);
    assert!(!tx.is_retryable(&*error), "it has not joined");
    tx.join(&b).await.unwrap();
    assert!(tx.is_retryable(&*error));
    tx.doom();
    let refused = aborted(tx.commit().await);
    assert!(!refused.is_retryable());
}

/// Each misuse is told apart, and says what to do.
#[tokio::test(start_paused = true)]
async fn each_misuse_says_what_to_do() {
    let mut world = World::new();
    let a = world.two_phase("a");
    let (manager, _log) = world.start().await;
    let chain = |error: &dyn std::error::Error| match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let mut texts = Vec::new();

    let tx = manager.begin();
    tx.doom();
    texts
        .push((chain(&tx.commit().await.unwrap_err()), "was doomed, which leaves nothing but an abort; begin another"));

    let tx = manager.begin();
    let handle = tx.handle();
    let guard = handle.join(&a).await.unwrap();
    texts.push((chain(&tx.commit().await.unwrap_err()), "in use when commit was called; drop them before"));
    drop(guard);
    texts.push((chain(&handle.join(&a).await.map(|_| ()).unwrap_err()), "has ended or is ending; begin another"));
    texts.push((chain(&handle.savepoint().await.map(|_| ()).unwrap_err()), "no savepoints any more: it has ended"));
    texts.push((chain(&handle.before_commit(async |_| Ok(())).unwrap_err()), "register it before commit or abort"));

    let tx = manager.begin();
    let savepoint = tx.savepoint().await.unwrap();
    tx.join(&a).await.unwrap();
    a.fail(Call::Rollback, Fault::Refused);
    savepoint.rollback().await.unwrap_err();
    texts.push((
        chain(&tx.join(&a).await.map(|_| ()).unwrap_err()),
        "nothing but an abort is left; abort it and begin another",
    ));
    texts.push((chain(&tx.commit().await.unwrap_err()), "a savepoint had failed, which leaves nothing but an abort"));
    for (text, says) in texts {
        assert!(text.contains(says), "{text:?} is to say {says:?}");
    }
}
