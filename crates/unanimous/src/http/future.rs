//! [`ResponseFuture`]: drives the handler, then ends the transaction, and lets the response out last.
//!
//! Everything that can happen to a request is decided here:
//!
//! ```text
//! handler ─┬─ returned, nothing begun ─────────────── its answer
//!          ├─ failed, doomed or vetoed ─── abort ───── its answer
//!          ├─ its answer says abort ────── abort ───── its answer
//!          ├─ panicked (or the veto did) ─ abort ───── the panic
//!          ├─ the veto failed ──────────── abort ───── the answer of a failed commit
//!          ├─ otherwise ────────────────── commit ─┬── its answer
//!          │                                       └── the answer of a failed commit
//!          ├─ the time limit passed ────── abort ───── the answer of a failed commit
//!          └─ dropped ─────────────────── abort, in the background
//! ```
//!
//! Dropped while it commits, nothing is lost: a commit runs detached from its call on (rule 6).
//!
//! Must not know where requests come from, nor what a body is.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Response;
use pin_project_lite::pin_project;
use tracing::Span;
use unanimous_core::TransactionId;

use super::ended::{self, Ended, Named};
use super::failure::OnCommitFailure;
use super::layer::TransactionLayer;
use super::problem::id_value;
use super::request::Head;
use super::veto::VetoContext;
use crate::commit::{Abort, Commit};
use crate::env::BoxFuture;
use crate::error::{Cause, CommitError, chain};
use crate::lazy::{Lazy, LazyOwner};
use crate::transaction::Transaction;

type Panic = Box<dyn Any + Send>;

pin_project! {
    /// The response of a [`TransactionService`](super::TransactionService): ready when the transaction's outcome is known.
    ///
    /// Dropping it before commit has started aborts the transaction in the background; afterwards it changes nothing.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<Fut, F>
    where
        Fut: Future,
    {
        // Declared, and so dropped, before the exchange: what the handler still holds of the transaction goes before its owner.
        #[pin]
        handler: Option<Fut>,
        exchange: Option<Exchange<F>>,
        // None where the request has no time limit, and once the end has begun.
        limit: Option<BoxFuture<'static, ()>>,
        ending: Option<Ending<Fut::Output>>,
    }
}

impl<Fut: Future, F> ResponseFuture<Fut, F> {
    /// Only the handler: the layer steps aside.
    pub(crate) fn aside(handler: Fut) -> Self {
        Self { handler: Some(handler), exchange: None, limit: None, ending: None }
    }

    /// The handler, called and polled in its transaction.
    pub(crate) fn begin(exchange: Exchange<F>, limit: Option<Duration>, call: impl FnOnce() -> Fut) -> Self {
        let limit = limit.map(|limit| exchange.layer.manager.inner.env.sleep(limit));
        match exchange.run(call) {
            Ok(handler) => Self { handler: Some(handler), exchange: Some(exchange), limit, ending: None },
            Err(panic) => {
                let ending = exchange.give_up(Then::Panic(panic));
                Self { handler: None, exchange: Some(exchange), limit: None, ending: Some(ending) }
            }
        }
    }
}

impl<Fut, F, B, E> Future for ResponseFuture<Fut, F>
where
    Fut: Future<Output = Result<Response<B>, E>>,
    F: OnCommitFailure<B>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(exchange) = this.exchange else {
            // The contract of a future: it is not polled again after it was ready, and the handler is there until then.
            return this.handler.as_pin_mut().expect("a service that was stepped aside for has its handler").poll(cx);
        };
        if this.ending.is_none() {
            let handler = this.handler.as_mut().as_pin_mut().expect("until it ends, a request has its handler");
            let handled = match exchange.run(|| handler.poll(cx)) {
                Ok(Poll::Ready(result)) => Handled::Returned(result),
                Ok(Poll::Pending) => match this.limit.as_mut().map(|limit| limit.as_mut().poll(cx)) {
                    Some(Poll::Ready(())) => Handled::OutOfTime,
                    Some(Poll::Pending) | None => return Poll::Pending,
                },
                Err(panic) => Handled::Panicked(panic),
            };
            // Before the end begins: whatever its future still borrows of the transaction is given back.
            this.handler.set(None);
            *this.limit = None;
            let _entered = exchange.span.enter();
            *this.ending = Some(match handled {
                Handled::Returned(result) => match exchange.owner.take() {
                    Some(transaction) => exchange.end(transaction, result),
                    // At once: many requests begin nothing, and a response is large to be moved around.
                    None => return Poll::Ready(result.map(|response| exchange.name(response, None))),
                },
                Handled::OutOfTime => exchange.out_of_time(),
                Handled::Panicked(panic) => exchange.give_up(Then::Panic(panic)),
            });
        }
        let ending = this.ending.as_mut().expect("set above");
        let then = ready!(ending.poll(cx));
        Poll::Ready(match then {
            Then::Answer(result) => result,
            Then::Committed(result, id) => result.map(|response| exchange.label(response, Ended::committed(id))),
            Then::Failed(error) => Ok(exchange.label(exchange.failed(&error), Ended::failed(&error))),
            Then::Panic(panic) => resume_unwind(panic),
        })
    }
}

impl<Fut: Future, F> fmt::Debug for ResponseFuture<Fut, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (&self.exchange, &self.ending) {
            (None, _) => "ResponseFuture(aside)",
            (Some(_), None) => "ResponseFuture(handling)",
            (Some(_), Some(_)) => "ResponseFuture(ending)",
        })
    }
}

/// How the handler came to its end.
enum Handled<R> {
    Returned(R),
    OutOfTime,
    Panicked(Panic),
}

/// What goes out when the transaction has ended.
enum Then<R> {
    /// The handler's own.
    Answer(R),
    /// The same, now that its transaction has committed.
    Committed(R, TransactionId),
    Failed(CommitError),
    Panic(Panic),
}

/// A transaction on its way to its end.
enum Ending<R> {
    Commit(Commit, Option<R>),
    Abort(Abort, Option<Then<R>>),
    Nothing(Option<Then<R>>),
}

impl<R> Ending<R> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Then<R>> {
        const ONCE: &str = "a future is not polled again after it was ready";
        Poll::Ready(match self {
            Ending::Commit(commit, answer) => match ready!(Pin::new(commit).poll(cx)) {
                Ok(committed) => Then::Committed(answer.take().expect(ONCE), committed.id),
                Err(error) => Then::Failed(error),
            },
            Ending::Abort(abort, then) => {
                ready!(Pin::new(abort).poll(cx));
                then.take().expect(ONCE)
            }
            Ending::Nothing(then) => then.take().expect(ONCE),
        })
    }
}

/// One request: the owner of its transaction, and what is needed to end it.
pub(crate) struct Exchange<F> {
    layer: Arc<TransactionLayer<F>>,
    owner: LazyOwner<Head>,
    /// The span that the request came in with. What ends the transaction runs in it, also where the future is dropped elsewhere.
    span: Span,
}

impl<F> Exchange<F> {
    pub(crate) fn new(layer: Arc<TransactionLayer<F>>, owner: LazyOwner<Head>) -> Self {
        Self { layer, owner, span: Span::current() }
    }

    fn head(&self) -> &Head {
        self.owner.slot().beginner()
    }

    /// Runs a piece of the handler with the transaction as the current one, and catches its panic.
    fn run<R>(&self, piece: impl FnOnce() -> R) -> Result<R, Panic> {
        // Unwind safe: after a panic the handler is not polled again, and the panic goes on to those who called.
        catch_unwind(AssertUnwindSafe(|| crate::current::enter(self.owner.slot().clone(), piece)))
    }

    /// Commits or gives up, now that the handler has returned.
    fn end<B, E>(&self, transaction: Transaction, result: Result<Response<B>, E>) -> Ending<Result<Response<B>, E>> {
        // It is held back until the abort is done, and says so by then.
        let aborts = |transaction: Transaction, cause, result: Result<Response<B>, E>| {
            let id = transaction.id();
            let labelled = result.map(|response| {
                let retryable = ended::is_retryable(&response);
                self.label(response, Ended::aborted(id, retryable))
            });
            abort(transaction, cause, Then::Answer(labelled))
        };
        let Ok(response) = &result else {
            return aborts(transaction, Cause::HandlerFailed, result);
        };
        if ended::is_replay(response) {
            return Ending::Commit(transaction.commit(), Some(result));
        }
        if transaction.is_doomed() {
            return aborts(transaction, Cause::Doomed, result);
        }
        if ended::aborts(response) {
            return aborts(transaction, Cause::HandlerFailed, result);
        }
        if let Some(veto) = &self.layer.veto {
            let context = VetoContext::new(&self.head().method, &self.head().uri, response);
            match catch_unwind(AssertUnwindSafe(|| veto(&context))) {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => return aborts(transaction, Cause::Vetoed, result),
                Ok(Err(error)) => {
                    let (id, method, path) = (transaction.id(), &self.head().method, self.head().uri.path());
                    tracing::error!(%id, %method, path, %error, "the commit veto failed; the transaction is aborted");
                    let failed = CommitError::Aborted { id, source: Cause::VetoFailed };
                    return abort(transaction, Cause::VetoFailed, Then::Failed(failed));
                }
                Err(panic) => return abort(transaction, Cause::VetoFailed, Then::Panic(panic)),
            }
        }
        Ending::Commit(transaction.commit(), Some(result))
    }

    /// Gives the transaction up, if there is one.
    fn give_up<R>(&self, then: Then<R>) -> Ending<R> {
        match self.owner.take() {
            Some(transaction) => abort(transaction, Cause::HandlerFailed, then),
            None => Ending::Nothing(Some(then)),
        }
    }

    /// Aborts, now that the time limit has passed. A transaction that had not begun begins, so that the answer and the log have an id.
    fn out_of_time<R>(&self) -> Ending<R> {
        if let Err(panic) = self.run(|| self.owner.slot().tx()) {
            return self.give_up(Then::Panic(panic));
        }
        let Some(transaction) = self.owner.take() else {
            // Its begin has panicked before, and the handler has caught that. There is no id to answer with.
            return Ending::Nothing(Some(Then::Panic(Box::new("the request's transaction could not begin"))));
        };
        let failed = CommitError::Aborted { id: transaction.id(), source: Cause::TimeLimit };
        abort(transaction, Cause::TimeLimit, Then::Failed(failed))
    }

    /// Says on the response how its transaction ended.
    fn label<B>(&self, mut response: Response<B>, ended: Ended) -> Response<B> {
        let named = !ended::is_unnamed(&response);
        response.extensions_mut().insert(ended);
        self.name(response, named.then_some(ended.id))
    }

    /// Names the request's transaction, or another one that the response tells of, in the header.
    fn name<B>(&self, mut response: Response<B>, own: Option<TransactionId>) -> Response<B> {
        let other = response.extensions().get::<Named>().map(|named| named.0);
        if let (Some(id), Some(name)) = (other.or(own), &self.layer.transaction_header) {
            // One that is there names the transaction whose response is given once more.
            response.headers_mut().entry(name).or_insert_with(|| id_value(id));
        }
        response
    }

    /// The answer where the commit failed. Its reasons go into the log, since the answer must not tell them.
    fn failed<B>(&self, error: &CommitError) -> Response<B>
    where
        F: OnCommitFailure<B>,
    {
        let (method, path, reason) = (&self.head().method, self.head().uri.path(), chain(error));
        self.span.in_scope(|| match error {
            CommitError::Unknown { .. } => tracing::error!(%method, path, "{reason}"),
            CommitError::Aborted { .. } if error.is_retryable() => tracing::info!(%method, path, "{reason}"),
            CommitError::Aborted { .. } => tracing::warn!(%method, path, "{reason}"),
        });
        self.layer.on_commit_failure.response(error)
    }
}

impl<F> Drop for Exchange<F> {
    fn drop(&mut self) {
        // None but for a request that was dropped before its end began: the client went away, or a time limit further out passed.
        if let Some(transaction) = self.owner.take() {
            self.span.in_scope(|| {
                let (id, method, path) = (transaction.id(), &self.head().method, self.head().uri.path());
                tracing::debug!(%id, %method, path, "the request was dropped before its end; its transaction aborts");
                // Detached from its call on. A transaction that is merely dropped warns, and clients go away every day.
                drop(transaction.abort_for(Cause::Dropped));
            });
        }
    }
}

fn abort<R>(transaction: Transaction, cause: Cause, then: Then<R>) -> Ending<R> {
    Ending::Abort(transaction.abort_for(cause), Some(then))
}
