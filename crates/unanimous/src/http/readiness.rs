//! [`ReadinessService`]: whether a load balancer should send requests here.
//!
//! Must not know what the manager's state is made of.

use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower_service::Service;

use super::problem::{escaped, json, not_a_read, without_body};
use crate::manager::TransactionManager;

/// Answers GET and HEAD, whatever the path: 200 while the manager takes new work, and 503 from the moment when its
/// [`shutdown`](TransactionManager::shutdown) begins, and while its log takes no decisions.
///
/// ```text
/// {"ready": false, "why": "shutting down" | "no decisions", "in_doubt": 0, "unreachable": ["billing"]}
/// ```
///
/// `why` is there when it is not ready. `in_doubt` is what recovery's last pass could not finish, `unreachable` the names of the resources that
/// it could not reach: they are listed for people, and don't make it unready, as requests that don't use them are served. Nothing of
/// what the log or a store said is told.
///
/// It looks at memory only, so that it answers at once. The body of its responses is as in [`OutcomeService`](super::OutcomeService).
pub struct ReadinessService<B = Full<Bytes>> {
    manager: TransactionManager,
    body: PhantomData<fn() -> B>,
}

impl ReadinessService {
    /// Answers for this manager.
    pub fn new(manager: TransactionManager) -> Self {
        Self::with_body(manager)
    }
}

impl<B> ReadinessService<B> {
    /// The same, with another type of body.
    pub fn with_body(manager: TransactionManager) -> Self {
        Self { manager, body: PhantomData }
    }
}

impl<B> Clone for ReadinessService<B> {
    fn clone(&self) -> Self {
        Self::with_body(self.manager.clone())
    }
}

impl<B> fmt::Debug for ReadinessService<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadinessService").field("manager", &self.manager).finish()
    }
}

impl<B, ReqBody> Service<Request<ReqBody>> for ReadinessService<B>
where
    B: From<String>,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Ready<Result<Response<B>, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let response = match not_a_read(request.method()) {
            None => answer(&self.manager),
            Some(refused) => refused,
        };
        ready(Ok(without_body(request.method(), response).map(B::from)))
    }
}

fn answer(manager: &TransactionManager) -> Response<String> {
    let readiness = manager.readiness();
    let ready = readiness.is_ready();
    let why = match ready {
        true => "",
        false if readiness.closing => r#""why":"shutting down","#,
        false => r#""why":"no decisions","#,
    };
    let unreachable: Vec<_> = readiness.unreachable.iter().map(|name| escaped(name)).collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(
        status,
        format!(
            r#"{{"ready":{ready},{why}"in_doubt":{},"unreachable":[{}]}}"#,
            readiness.in_doubt,
            unreachable.join(",")
        ),
    )
}
