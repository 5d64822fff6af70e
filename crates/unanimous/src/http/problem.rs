//! Problem documents (RFC 9457), and other small documents: what the layers answer by themselves.
//!
//! Must not know why: the texts are handed in, and nothing that a store said may be among them.

use std::fmt::Write as _;

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Response, StatusCode};
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

/// The answer where a request's body is read ahead, and does not come in time.
pub(crate) const REQUEST_BODY_TOO_SLOW: Problem = Problem {
    status: StatusCode::REQUEST_TIMEOUT,
    kind: "request-body-too-slow",
    title: "The request body did not arrive in time",
    detail: "Nothing was done. The request may be repeated.",
};

/// The answer where a request runs in no transaction and should: it is the service's fault.
pub(crate) const NO_TRANSACTION: Problem = Problem {
    status: StatusCode::INTERNAL_SERVER_ERROR,
    kind: "no-transaction",
    title: "This request should run in a transaction, and has none",
    detail: "Nothing was done. The log of the service says what to change.",
};

/// A JSON document that nobody may keep.
pub(crate) fn json(status: StatusCode, document: String) -> Response<String> {
    let mut response = Response::new(document);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A text in JSON, with its quotes (RFC 8259, 7).
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => escaped.extend(['\\', character]),
            '\0'..='\x1f' => {
                // Writing to a string can't fail.
                let _ = write!(escaped, "\\u{:04x}", u32::from(character));
            }
            _ => escaped.push(character),
        }
    }
    escaped.push('"');
    escaped
}

/// The answer to what is neither GET nor HEAD.
pub(crate) fn not_a_read(method: &Method) -> Option<Response<String>> {
    const NOT_ALLOWED: Problem = Problem {
        status: StatusCode::METHOD_NOT_ALLOWED,
        kind: "not-allowed",
        title: "This can only be read",
        detail: "Use GET or HEAD.",
    };
    if [Method::GET, Method::HEAD].contains(method) {
        return None;
    }
    let mut response = NOT_ALLOWED.response();
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    Some(response)
}

/// For HEAD the head alone, with the length that the body would have had.
pub(crate) fn without_body(method: &Method, mut response: Response<String>) -> Response<String> {
    if method == Method::HEAD {
        let length = std::mem::take(response.body_mut()).len();
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

/// A transaction's id as a header's value.
pub(crate) fn id_value(id: TransactionId) -> HeaderValue {
    // Room for the longest, since each response of a transaction has one.
    let mut text = String::with_capacity(64);
    write!(text, "{id}").expect("a string takes what is written to it");
    HeaderValue::try_from(text).expect("an id has digits, letters and dots only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_json() {
        assert_eq!(escaped("a \"b\" \\ \n\u{1f} ü"), r#""a \"b\" \\ \u000a\u001f ü""#);
    }
}
