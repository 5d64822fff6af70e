//! The commit veto: a response that says that its transaction must not commit.
//!
//! Must not know transactions: a veto sees the request's method and path and the response's head, and answers yes or no.

use http::{Extensions, HeaderMap, Method, StatusCode, Uri};
use unanimous_core::BoxError;

/// What a commit veto may look at: whose response it is, and the response's head. The body is not there to be looked at: it may be
/// a stream that has not begun.
#[derive(Clone, Copy, Debug)]
pub struct VetoContext<'a> {
    method: &'a Method,
    uri: &'a Uri,
    status: StatusCode,
    headers: &'a HeaderMap,
    extensions: &'a Extensions,
}

impl<'a> VetoContext<'a> {
    /// The context of this response to a request with this method and URI. The layer makes its own; this is for tests of a veto.
    pub fn new<B>(method: &'a Method, uri: &'a Uri, response: &'a http::Response<B>) -> Self {
        Self { method, uri, status: response.status(), headers: response.headers(), extensions: response.extensions() }
    }

    /// The request's method.
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// The request's URI, as the layer saw it (a router in between may have stripped a prefix).
    pub fn uri(&self) -> &'a Uri {
        self.uri
    }

    /// The response's status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The response's headers.
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }

    /// The response's extensions: where a handler can leave a word for the veto that the client never sees.
    pub fn extensions(&self) -> &'a Extensions {
        self.extensions
    }
}

/// The veto of repoze.tm2, rule by rule. The first that applies decides:
///
/// 1. The first `X-Tm` header: `commit`, in any case, commits; any other value aborts.
/// 2. An `X-Tm-Abort` header with any value aborts.
/// 3. A status of 400 to 599 aborts.
/// 4. Everything else commits.
///
/// The value is compared as it is: `commit` with a space before it is another value. The headers go out to the client with the
/// rest of the response.
///
/// ```
/// use unanimous::http::{VetoContext, default_commit_veto};
///
/// let (method, uri) = (http::Method::POST, http::Uri::from_static("/orders"));
/// let response = http::Response::builder().status(422).body(())?;
/// assert!(default_commit_veto(&VetoContext::new(&method, &uri, &response)));
///
/// let response = http::Response::builder().status(422).header("x-tm", "commit").body(())?;
/// assert!(!default_commit_veto(&VetoContext::new(&method, &uri, &response)));
/// # Ok::<(), http::Error>(())
/// ```
pub fn default_commit_veto(context: &VetoContext<'_>) -> bool {
    if let Some(wish) = context.headers.get("x-tm") {
        return !wish.as_bytes().eq_ignore_ascii_case(b"commit");
    }
    // A status is any number from 100 to 999; repoze.tm2 looks at its first digit.
    context.headers.contains_key("x-tm-abort") || matches!(context.status.as_u16() / 100, 4 | 5)
}

/// A veto as the layer keeps it.
pub(crate) type Veto = dyn Fn(&VetoContext<'_>) -> Result<bool, BoxError> + Send + Sync;
