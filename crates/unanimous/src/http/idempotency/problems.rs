//! What the layer answers by itself.
//!
//! Must not know when.

use bytes::Bytes;
use http::{Response, StatusCode};

use crate::http::problem::{Problem, REQUEST_BODY_TOO_SLOW};

/// A problem as a response with any body that can be whole.
pub(super) fn answer<B: From<Bytes>>(problem: Problem) -> Response<B> {
    problem.response::<String>().map(|text| B::from(Bytes::from(text)))
}

/// The same for a request that may be repeated after so many seconds.
pub(super) fn answer_after<B: From<Bytes>>(problem: Problem, seconds: u64) -> Response<B> {
    problem.response_after::<String>(seconds).map(|text| B::from(Bytes::from(text)))
}

pub(super) const MISSING: Problem = Problem {
    status: StatusCode::BAD_REQUEST,
    kind: "idempotency-key-missing",
    title: "This request needs an Idempotency-Key",
    detail: "Nothing was done. Send a header Idempotency-Key with a value that no other request has, such as a random UUID.",
};

pub(super) const MALFORMED: Problem = Problem {
    status: StatusCode::BAD_REQUEST,
    kind: "idempotency-key-malformed",
    title: "The Idempotency-Key can not be read",
    detail: "Nothing was done. Send one header Idempotency-Key with 1 to 255 visible ASCII characters, in quotes or without.",
};

pub(super) const BROKEN: Problem = Problem {
    status: StatusCode::BAD_REQUEST,
    kind: "request-body-broken",
    title: "The request body could not be read to its end",
    detail: "Nothing was done. The request may be repeated with the same Idempotency-Key.",
};

pub(super) const TOO_LARGE: Problem = Problem {
    status: StatusCode::PAYLOAD_TOO_LARGE,
    kind: "request-body-too-large",
    title: "The request body is too large for a request with an Idempotency-Key",
    detail: "Nothing was done.",
};

pub(super) const TOO_SLOW: Problem = Problem {
    detail: "Nothing was done. The request may be repeated with the same Idempotency-Key.",
    ..REQUEST_BODY_TOO_SLOW
};

pub(super) const IN_FLIGHT: Problem = Problem {
    status: StatusCode::CONFLICT,
    kind: "idempotency-key-in-flight",
    title: "A request with this Idempotency-Key is being worked on",
    detail: "Its outcome is not known yet. Repeat the request later, with the same key, to get its response.",
};

pub(super) const OTHER_REQUEST: Problem = Problem {
    status: StatusCode::UNPROCESSABLE_ENTITY,
    kind: "idempotency-key-reused",
    title: "This Idempotency-Key was used for another request",
    detail: "Nothing was done. A repeat has the same method, path, query, content type and body; another request needs another key.",
};

pub(super) const UNAVAILABLE: Problem = Problem {
    status: StatusCode::SERVICE_UNAVAILABLE,
    kind: "idempotency-key-unavailable",
    title: "The Idempotency-Key could not be looked up or kept",
    detail: "Nothing was stored. The request may be repeated later, with the same key.",
};

pub(super) const FAILED: Problem = Problem {
    status: StatusCode::INTERNAL_SERVER_ERROR,
    kind: "idempotency-key-failed",
    title: "The Idempotency-Key can not be looked up or kept",
    detail: "Nothing was stored. The fault is the service's, where it was written down.",
};

pub(super) const NOT_KEPT: Problem = Problem {
    status: StatusCode::INTERNAL_SERVER_ERROR,
    kind: "response-not-kept",
    title: "The response could not be kept for its Idempotency-Key",
    detail: "Nothing was stored. The response is too large, is a stream, or broke off.",
};
