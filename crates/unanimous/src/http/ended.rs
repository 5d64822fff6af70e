//! What the layers tell each other by a response's extensions.
//!
//! Must not know who asks, nor who answers.

use http::Response;

/// What a handler puts into its response's extensions to say: abort, and repeat me.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retryable;

/// Whether the response says that its transaction must not commit.
pub(crate) fn aborts<B>(response: &Response<B>) -> bool {
    response.extensions().get::<Retryable>().is_some()
}
