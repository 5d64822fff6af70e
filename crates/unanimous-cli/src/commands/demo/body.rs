//! A request's body, within a bound, whatever the client sends.
//!
//! A body that is too large is read to its end and thrown away, up to a second bound: a server that answers while the client still
//! sends, and closes, resets the connection, and the client never sees the answer.
//!
//! Must not know what the body is for.

use std::fmt;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::StreamExt as _;

use super::answer::refused;

/// The largest body that is accepted, in bytes.
pub(crate) const LIMIT: usize = 64 * 1024;
/// What is read of one that is larger.
const PATIENCE: u64 = 64 * 1024 * 1024;
/// How long a client may take to send its body.
const TIME: Duration = Duration::from_secs(20);

/// Why there is no body.
#[derive(Debug)]
enum BodyError {
    /// Larger than [`LIMIT`].
    TooLarge,
    /// It did not come within [`TIME`].
    TooSlow,
    /// The client went away, or broke the protocol; why is in the server's own log.
    Broken,
}

impl BodyError {
    fn status(&self) -> StatusCode {
        match self {
            BodyError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::TooSlow => StatusCode::REQUEST_TIMEOUT,
            BodyError::Broken => StatusCode::BAD_REQUEST,
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::TooLarge => write!(f, "the body is larger than {LIMIT} bytes"),
            BodyError::TooSlow => write!(f, "the body did not come within {} seconds", TIME.as_secs()),
            BodyError::Broken => f.write_str("the body can't be read: it broke off, or is not what its headers say"),
        }
    }
}

/// Reads it, and hands the request on with it: what is further in may need it more than once.
pub(crate) async fn whole(request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    match read(&head.headers, body).await {
        Ok(body) => next.run(Request::from_parts(head, Body::from(body))).await,
        Err(error) => refused(error.status(), error),
    }
}

async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, BodyError> {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let too_large = length.is_some_and(|length| length > LIMIT as u64);
    // A client that asks first has not sent anything yet, and one that announces more than anybody waits for is cut off.
    if too_large && (headers.contains_key(EXPECT) || length.is_some_and(|length| length > PATIENCE)) {
        return Err(BodyError::TooLarge);
    }
    tokio::time::timeout(TIME, gathered(body)).await.unwrap_or(Err(BodyError::TooSlow))
}

async fn gathered(body: Body) -> Result<Bytes, BodyError> {
    let mut stream = body.into_data_stream();
    let mut gathered = Vec::new();
    let mut seen = 0_u64;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| {
            tracing::warn!(%error, "a request's body can't be read");
            BodyError::Broken
        })?;
        seen += chunk.len() as u64;
        if seen > PATIENCE {
            break;
        }
        if seen <= LIMIT as u64 {
            gathered.extend_from_slice(&chunk);
        }
    }
    if seen > LIMIT as u64 { Err(BodyError::TooLarge) } else { Ok(gathered.into()) }
}
