//! `unanimous indoubt commit` and `rollback`: the operator's own decision for one branch.
//!
//! Explained first; done with `--yes` only, and recorded on the disk before it is done.
//!
//! Must not know how a decision is found out.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use unanimous::files::Files;
use unanimous::{BranchId, DeciderId, ResourceManager as _};

use super::why::{Decision, Finding};
use super::{Picture, What};
use crate::commands::chain;
use crate::failure::Failure;
use crate::operator::{Act, Begin, FILE, Recorder, now};
use crate::output::say;
use crate::stores::{Given, Store};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The branch's id, as `unanimous indoubt` prints it: u1:...
    id: String,
    #[command(flatten)]
    what: What,
    /// Where the act is recorded; operator.jsonl in the log's folder, if it is not given
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Do it; without it is only said what would happen
    #[arg(long)]
    yes: bool,
}

/// How an act stands to the decision.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stand {
    AsDecided,
    Against,
    NotKnown,
}

impl Stand {
    fn of(act: Act, decision: &Decision) -> Self {
        match (act, decision) {
            (Act::Commit, Decision::Commit { .. }) | (Act::Rollback, Decision::Abort) => Stand::AsDecided,
            (Act::Commit, Decision::Abort) | (Act::Rollback, Decision::Commit { .. }) => Stand::Against,
            (_, Decision::None | Decision::Unknown) => Stand::NotKnown,
        }
    }

    fn heuristic(self) -> Option<bool> {
        match self {
            Stand::AsDecided => Some(false),
            Stand::Against => Some(true),
            Stand::NotKnown => None,
        }
    }
}

impl Arguments {
    pub(super) async fn run(self, act: Act) -> Result<ExitCode, Failure> {
        let Self { id, what: What { log, log_postgres, stores }, record, yes } = self;
        let branch: BranchId = id.parse().map_err(|error| {
            Failure::new("that is no branch of ours")
                .because(&error)
                .hint("`unanimous indoubt` prints the ids of branches; another program's transaction is finished with that program, or by hand in its database")
        })?;
        let given = stores.given()?;
        let picture = Picture::take(&given, log.as_deref(), log_postgres.as_deref()).await?;
        let (place, finding) = find(&branch, &picture)?;
        let stand = Stand::of(act, &finding.decision);
        let store = picture.stores[place].state.as_ref().map(|content| content.store.to_string()).unwrap_or_default();
        explain(act, &branch, &given[place], finding, stand);
        if !yes {
            return Err(Failure::new("nothing was done, since --yes was not given")
                .hint("read docs/operating/in-doubt.md first; recovery decides by the log, and needs no operator but where it holds"));
        }

        let path = record.or_else(|| log.map(|log| log.join(FILE))).ok_or_else(|| {
            Failure::new("there is no place to record it")
                .hint("give the log's folder, --log DIR, or a file of your own, --record FILE")
        })?;
        let begin = Begin {
            at: now(),
            act,
            branch: branch.to_string(),
            resource: given[place].name.clone(),
            store,
            decision: finding.decision.word().to_owned(),
            heuristic: stand.heuristic(),
        };
        let unrecorded = |error: std::io::Error| {
            Failure::new(format!("nothing was done, since it could not be recorded in {}", path.display()))
                .because(&error)
        };
        let mut recorder = Recorder::open(&path).map_err(unrecorded)?;
        recorder.begin(&begin).map_err(unrecorded)?;
        let result = finish(act, &branch, &given[place]).await;
        let text = match &result {
            Ok(()) => "done",
            Err(error) => error.as_str(),
        };
        let recorded = recorder.end(&begin, text);
        if let Err(error) = result {
            return Err(Failure::new(format!("the branch was not {}: {error}", act.done()))
                .hint("it is listed still, or can't be looked for; look again with `unanimous indoubt`"));
        }
        say(format!("{} {branch} in {:?}; it is not listed any more", act.done(), given[place].name));
        recorded.map_err(|error| {
            Failure::new(format!("it was done, but its end could not be recorded in {}", recorder.path().display()))
                .because(&error)
        })?;
        say(format!("recorded in {}", recorder.path().display()));
        if stand == Stand::Against {
            say(AFTER);
        }
        Ok(ExitCode::SUCCESS)
    }
}

const AFTER: &str = "HEURISTIC: the transaction is torn now. Repair it by hand, and tell those who use the data: docs/operating/heuristics.md";

/// The place of the store that lists the branch, and what is known of it.
fn find<'p>(branch: &BranchId, picture: &'p Picture) -> Result<(usize, &'p Finding), Failure> {
    let found = picture.findings.iter().enumerate().find_map(|(place, findings)| {
        let (_, finding) = findings.iter().find(|(listed, _)| listed.branch == *branch)?;
        Some((place, finding))
    });
    found.ok_or_else(|| {
        let mut message = format!("no store that was given lists the branch {branch}");
        for seen in &picture.stores {
            if let Err(error) = &seen.state {
                message.push_str(&format!("\n{:?} can't be asked: {error}", seen.name));
            }
        }
        Failure::new(message).hint("it is finished already, or its store is not among those that were given and answer")
    })
}

fn explain(act: Act, branch: &BranchId, given: &Given, finding: &Finding, stand: Stand) {
    say(format!("{branch} in {:?}", given.name));
    say(format!("  decision    {}: {}", finding.decision.word(), finding.why));
    say(format!("  otherwise   {}", finding.advice));
    let word = act.word();
    say(match (stand, act) {
        (Stand::AsDecided, _) => format!("  {word:<10}  does what is decided, and what recovery would do"),
        (Stand::Against, Act::Rollback) => format!(
            "  {word:<10}  HEURISTIC: against the decision to commit. The other branches are committed or will be, and nothing undoes that: \
             the transaction would be torn, for good"
        ),
        (Stand::Against, Act::Commit) => format!(
            "  {word:<10}  HEURISTIC: against the decision to abort. The other branches are rolled back or will be, and nothing undoes that: \
             the transaction would be torn, for good"
        ),
        (Stand::NotKnown, Act::Commit) if matches!(branch.decider, DeciderId::Together(_)) => format!(
            "  {word:<10}  tears it, unless all of its branches are committed by hand: recovery will abort the rest where it may still conclude, since it finds this one missing"
        ),
        (Stand::NotKnown, Act::Rollback) if matches!(branch.decider, DeciderId::Together(_)) => format!(
            "  {word:<10}  loses the transaction, which may have been acknowledged: recovery will abort the rest where it may still conclude, since it finds this one missing"
        ),
        (Stand::NotKnown, _) => format!(
            "  {word:<10}  nobody knows from here what is decided, or will be: where it is the opposite, the transaction is torn, for good"
        ),
    });
}

/// Does it, and looks whether it is done.
async fn finish(act: Act, branch: &BranchId, given: &Given) -> Result<(), String> {
    let listed = match &given.store {
        Store::Postgres(postgres) => {
            let done = match act {
                Act::Commit => postgres.commit(branch).await,
                Act::Rollback => postgres.rollback(branch).await,
            };
            done.map_err(|error| chain(&error))?;
            postgres.in_doubt().await
        }
        Store::Files(path) => {
            let files = Files::open_existing(&given.name, path).await.map_err(|error| chain(&error))?;
            let done = match act {
                Act::Commit => files.commit(branch).await,
                Act::Rollback => files.rollback(branch).await,
            };
            done.map_err(|error| chain(&error))?;
            files.in_doubt().await
        }
        Store::Sqlite(_) => return Err("SQLite prepares no branches".to_owned()),
    };
    let listed = listed.map_err(|error| format!("whether it is done can't be seen: {}", chain(&error)))?;
    if listed.contains(branch) { Err("its store lists it still".to_owned()) } else { Ok(()) }
}
