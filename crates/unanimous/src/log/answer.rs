//! How a decision ended, as a log's writer tells those who wait for it.
//!
//! Must not know who writes, nor where.

use tokio::sync::oneshot;
use unanimous_core::DecideError;

use super::error::LogError;

/// How a decision ended, for those who wait for it.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Durable,
    Refused(LogError),
    Unknown(LogError),
}

/// What the writer says of a decision that was queued, or what was said at once.
pub(crate) async fn answered(queued: Result<oneshot::Receiver<Answer>, Answer>) -> Result<(), DecideError> {
    let answer = match queued {
        // The writer answers whatever happens; if it were gone, nobody would know.
        Ok(receiver) => receiver.await.unwrap_or(Answer::Unknown(LogError::NoRuntime)),
        Err(answer) => answer,
    };
    match answer {
        Answer::Durable => Ok(()),
        Answer::Refused(error) => Err(DecideError::Refused(error.into())),
        Answer::Unknown(error) => Err(DecideError::Unknown(error.into())),
    }
}
