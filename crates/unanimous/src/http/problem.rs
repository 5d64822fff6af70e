//! Problem documents (RFC 9457): what the layers answer by themselves.
//!
//! Must not know why: the texts are handed in, and nothing that a store said may be among them.

use std::fmt::Write as _;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use unanimous_core::TransactionId;

/// A document to be answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    /// The heading in this module's documentation that explains it, as its anchor.
    pub(crate) kind: &'static str,
    pub(crate) title: &'static str,
    pub(crate) detail: &'static str,
}

impl Problem {
    /// The response. None of the texts may need escaping in JSON.
    pub(crate) fn response<B: From<String>>(self) -> Response<B> {
        self.respond(String::new())
    }

    /// The same for a request that may be repeated after so many seconds.
    pub(crate) fn response_after<B: From<String>>(self, seconds: u64) -> Response<B> {
        let mut response = self.response();
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        response
    }

    /// The same with a transaction's id in the document.
    pub(crate) fn response_of<B: From<String>>(self, id: TransactionId) -> Response<B> {
        self.respond(format!(r#","transaction":"{id}""#))
    }

    fn respond<B: From<String>>(self, more: String) -> Response<B> {
        let Self { status, kind, title, detail } = self;
        let body = format!(
            r#"{{"type":"https://docs.rs/unanimous/latest/unanimous/http/index.html#{kind}","title":"{title}","status":{},"detail":"{detail}"{more}}}"#,
            status.as_u16()
        );
        let mut response = Response::new(B::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

/// A transaction's id as a header's value.
pub(crate) fn id_value(id: TransactionId) -> HeaderValue {
    // Room for the longest, since each response of a transaction has one.
    let mut text = String::with_capacity(64);
    write!(text, "{id}").expect("a string takes what is written to it");
    HeaderValue::try_from(text).expect("an id has digits, letters and dots only")
}
