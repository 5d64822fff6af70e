//! What the tests of the manager stand on beside the kit's stores and log in memory.

pub(crate) mod warnings;

use std::time::Duration;

use unanimous::CommitError;
pub(crate) use unanimous_testing::memory::{Call, Deadlock, Fault, Journal, JournalLog, LONG, MemoryStore, World};

/// The error of a commit that was surely aborted.
#[track_caller]
pub(crate) fn aborted<T: std::fmt::Debug>(result: Result<T, CommitError>) -> CommitError {
    match result {
        Err(error @ CommitError::Aborted { .. }) => error,
        other => panic!("aborted was expected, and it was {other:?}"),
    }
}

/// The error of a commit whose outcome nobody knows.
#[track_caller]
pub(crate) fn unknown<T: std::fmt::Debug>(result: Result<T, CommitError>) -> CommitError {
    match result {
        Err(error @ CommitError::Unknown { .. }) => error,
        other => panic!("an unknown outcome was expected, and it was {other:?}"),
    }
}

/// What a future gives; fails where it never ends, instead of hanging with it.
pub(crate) async fn ended<F: Future>(future: F) -> F::Output {
    match tokio::time::timeout(LONG, future).await {
        Ok(output) => output,
        Err(_) => panic!("this did not end within {LONG:?}"),
    }
}

/// Waits until something holds, letting tasks run and time pass; fails with `what` when it never does.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(LONG, waited).await.is_ok(), "this did not happen within {LONG:?}: {what}");
}
