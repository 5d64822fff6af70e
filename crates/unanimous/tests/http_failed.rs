//! A handler's errors: how they are answered, what they say to the layers, and what only the log is told.

#![allow(clippy::unwrap_used)]

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::{Request, StatusCode};
use tower::ServiceExt;
use unanimous::http::{AbortTransaction, Ended, Failed, Retryable, TransactionLayer};
use unanimous::log::MemoryLog;
use unanimous::{BoxError, BranchError, Cause, CommitError, JoinError, Outcome, RunError, TransactionManager, Tx};

use crate::http_support::{ABORTED, Step, World, work};
use crate::support::warnings::Warnings;

/// An error of the application's, with a source.
#[derive(Debug)]
struct Outer(BoxError);

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the order was not stored")
    }
}

impl std::error::Error for Outer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

fn outer(source: impl Into<BoxError>) -> BoxError {
    Outer(source.into()).into()
}

fn branch(source: BranchError) -> Cause {
    Cause::Branch { resource: "x".to_owned(), source }
}

/// How an error is answered in the handler of a transaction that has begun: status, kind, whether a repetition is asked for, and at which
/// level it is logged.
#[tokio::test]
async fn what_each_error_is_answered() {
    type Case = (&'static str, fn(&Tx) -> BoxError, u16, &'static str, bool, Option<&'static str>);
    let cases: [Case; 15] = [
        ("a conflict", |_| BranchError::conflict("secret").into(), 409, "commit-conflict", true, None),
        ("a conflict below", |_| outer(BranchError::conflict("secret")), 409, "commit-conflict", true, None),
        (
            "a conflict as it joins",
            |_| JoinError::Store { resource: "x".to_owned(), source: BranchError::conflict("secret") }.into(),
            409,
            "commit-conflict",
            true,
            None,
        ),
        (
            "a conflict of another transaction's commit",
            |tx| CommitError::Aborted { id: tx.id(), source: branch(BranchError::conflict("secret")) }.into(),
            409,
            "commit-conflict",
            false,
            None,
        ),
        (
            "a conflict in another transaction's work, below",
            |_| outer(RunError::Work { attempts: 1, source: outer(BranchError::conflict("secret")) }),
            409,
            "commit-conflict",
            false,
            None,
        ),
        (
            "a store that can't be reached",
            |_| JoinError::Store { resource: "x".to_owned(), source: BranchError::lost("secret") }.into(),
            503,
            "store-unavailable",
            false,
            Some("WARN"),
        ),
        (
            "no connection in time",
            |_| outer(JoinError::Store { resource: "x".to_owned(), source: BranchError::refused("secret") }),
            503,
            "store-unavailable",
            false,
            Some("WARN"),
        ),
        (
            "a branch that is lost",
            |_| BranchError::lost("secret").into(),
            503,
            "store-unavailable",
            false,
            Some("WARN"),
        ),
        (
            "another transaction's commit that was aborted",
            |tx| CommitError::Aborted { id: tx.id(), source: Cause::Doomed }.into(),
            503,
            "commit-aborted",
            false,
            Some("WARN"),
        ),
        (
            "another transaction's outcome that is unknown",
            |tx| outer(CommitError::Unknown { id: tx.id(), source: branch(BranchError::conflict("secret")) }),
            500,
            "commit-unknown",
            false,
            Some("ERROR"),
        ),
        ("a refusal", |_| BranchError::refused("secret").into(), 500, "handler-failed", false, Some("ERROR")),
        (
            "a store that is not registered",
            |_| JoinError::NotRegistered { resource: "secret".to_owned() }.into(),
            500,
            "handler-failed",
            false,
            Some("ERROR"),
        ),
        (
            "a handle that outlived its transaction",
            |tx| {
                let why = "it has ended or is ending; begin another";
                JoinError::NotActive { id: tx.id(), why }.into()
            },
            500,
            "handler-failed",
            false,
            Some("ERROR"),
        ),
        (
            "an error of the application's",
            |_| outer(io::Error::other("secret")),
            500,
            "handler-failed",
            false,
            Some("ERROR"),
        ),
        ("a text", |_| "secret".into(), 500, "handler-failed", false, Some("ERROR")),
    ];
    for (name, error, status, kind, retryable, level) in cases {
        let world = World::new().await;
        let (a, b, journal) = (world.a.clone(), world.b.clone(), world.journal.clone());
        // No veto: it aborts by itself.
        let app: Router = Router::new()
            .route(
                "/",
                post(async move |tx: Tx| -> Result<StatusCode, Failed> {
                    work(&tx, &a, &b, &journal).await?;
                    Err(error(&tx))?
                }),
            )
            .layer(TransactionLayer::new(world.manager.clone()));
        let warnings = Warnings::collect();
        let response = app.oneshot(Request::post("/").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), status, "{name}");
        world.assert_ended(&ABORTED, Outcome::Aborted);
        let ended = *response.extensions().get::<Ended>().unwrap();
        assert_eq!((ended.outcome, ended.retryable), (Outcome::Aborted, retryable), "{name}");
        assert_eq!(response.extensions().get::<Retryable>().is_some(), retryable, "{name}");
        assert!(response.extensions().get::<AbortTransaction>().is_some(), "{name}");
        // What the handler did in other transactions may be stored: the answer does not say that nothing is.
        let anothers = name.contains("another transaction");
        assert_eq!(response.headers().contains_key("retry-after"), status != 500 && !anothers, "{name}");
        let logged = warnings.with(&["a handler failed", &format!("transaction={}", ended.id)]);
        match level {
            None => assert_eq!(logged, Vec::<String>::new(), "{name}"),
            Some(level) => {
                assert_eq!(logged.len(), 1, "{name}: {logged:?}");
                assert!(logged[0].starts_with(level), "{name}: {logged:?}");
                let text =
                    if kind.starts_with("commit") || name.contains("outlived") { "transaction" } else { "secret" };
                assert!(logged[0].contains(text), "{name}: {logged:?}");
            }
        }
        let body = body(response).await;
        assert!(body.contains(&format!("#{kind}\"")), "{name}: {body}");
        assert!(!(anothers && body.contains("Nothing was stored")), "{name}: {body}");
        assert!(!body.contains("secret"), "{name}: {body}");
    }
}

async fn body(response: Response) -> String {
    String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
}

/// Whoever asks by the header's id must not be told "aborted", which is true of the request's own transaction only.
#[tokio::test]
async fn anothers_unknown_outcome_is_named_by_document_and_header() {
    const OWN: http::HeaderName = http::HeaderName::from_static("x-transaction");
    let world = World::new().await;
    let other = world.manager.begin().id();
    let app = |layer: TransactionLayer, begins: bool| -> Router {
        let manager = world.manager.clone();
        let handle = async move |request: axum::extract::Request| -> Result<(), Failed> {
            if begins {
                unanimous::http::transaction(request.extensions()).unwrap();
            }
            // Its own in between changes nothing.
            drop(manager.begin());
            Err(outer(CommitError::Unknown { id: other, source: Cause::Interrupted }))?
        };
        Router::new().route("/", post(handle)).layer(layer)
    };
    let layer = || TransactionLayer::new(world.manager.clone());
    for begins in [true, false] {
        for (layer, header) in [(layer(), "unanimous-transaction"), (layer().transaction_header(OWN), "x-transaction")]
        {
            let response = app(layer, begins).oneshot(Request::post("/").body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(response.headers()[header], other.to_string(), "{header}");
            assert_eq!(response.headers().keys().filter(|name| name.as_str().ends_with("transaction")).count(), 1);
            let ended = response.extensions().get::<Ended>().copied();
            assert_eq!(
                ended.map(|ended| (ended.id == other, ended.outcome)),
                begins.then_some((false, Outcome::Aborted))
            );
            let body = body(response).await;
            assert!(body.contains(&format!(r#""transaction":"{other}""#)), "{body}");
        }
    }
    let none = app(layer().no_transaction_header(), true);
    let response = none.oneshot(Request::post("/").body(Body::empty()).unwrap()).await.unwrap();
    assert!(response.headers().get("unanimous-transaction").is_none());
}

/// The log has the error's sources too.
#[tokio::test]
async fn the_log_is_told_the_sources() {
    let warnings = Warnings::collect();
    let failed = Failed::from(outer(io::Error::other("disk on fire")));
    assert_eq!(failed.to_string(), "the order was not stored");
    assert!(format!("{failed:?}").contains("disk on fire"), "{failed:?}");
    assert!(!failed.is_retryable());
    assert!(failed.error().source().unwrap().is::<io::Error>());
    let _: http::Response<String> = failed.response();
    assert_eq!(warnings.with(&["ERROR", "a handler failed: the order was not stored: disk on fire"]).len(), 1);
}

#[tokio::test]
async fn without_a_transaction_of_the_requests_nothing_is_to_be_repeated() {
    let manager = TransactionManager::builder(MemoryLog::new()).build().await.unwrap();
    // A handler that runs transactions of its own, of which an earlier one may have committed.
    let error = manager.run(2, async |_| Err::<(), _>(BranchError::conflict("another").into())).await.unwrap_err();
    assert!(matches!(error, RunError::Work { attempts: 2, .. }), "{error:?}");
    let failed = Failed::from(error);
    assert!(failed.is_retryable());
    let response: http::Response<String> = failed.response();
    assert_eq!(response.status(), 409);
    assert!(response.extensions().get::<Retryable>().is_none());
}

#[tokio::test]
async fn what_the_handler_calls_worth_it_is_repeated_but_for_an_unknown_outcome() {
    let response: http::Response<String> = Failed::retryable("not ready yet").response();
    assert_eq!(response.status(), 409);
    assert!(response.extensions().get::<Retryable>().is_some());
    let world = World::new().await;
    let unknown = CommitError::Unknown { id: world.manager.begin().id(), source: Cause::Interrupted };
    let response: http::Response<String> = Failed::retryable(outer(unknown)).response();
    assert_eq!(response.status(), 500);
    assert!(response.extensions().get::<Retryable>().is_none());
}

/// The errors of this crate are responses by themselves.
#[tokio::test]
async fn joins_commits_and_runs_are_answered_likewise() {
    let world = World::new().await;
    let id = world.manager.begin().id();
    let join = || JoinError::Store { resource: "x".to_owned(), source: BranchError::lost("secret") };
    let unknown = || CommitError::Unknown { id, source: Cause::Interrupted };
    let responses =
        [(join().into_response(), 503, "store-unavailable"), (unknown().into_response(), 500, "commit-unknown")];
    for (response, status, kind) in responses {
        assert_eq!(response.status(), status);
        assert!(response.extensions().get::<AbortTransaction>().is_some());
        let body = body(response).await;
        assert!(body.contains(&format!("#{kind}\"")), "{body}");
        assert_eq!(body.contains(&id.to_string()), kind == "commit-unknown", "{body}");
    }
}

/// A manager that shuts down, and a transaction that is past its time limit, take no joins: 503, not the program's fault.
#[tokio::test(start_paused = true)]
async fn a_join_that_comes_too_late_is_503() {
    let world = World::new().await;
    let a = world.a.clone();
    let app = |wait: Duration| -> Router {
        let a = a.clone();
        let late = async move |tx: Tx| -> Result<(), Failed> {
            if !wait.is_zero() {
                tx.join(&a).await?;
                tokio::time::sleep(wait).await;
            }
            tx.join(&a).await?;
            Ok(())
        };
        let limit = unanimous::Options::default().time_limit(Duration::from_secs(1));
        Router::new()
            .route("/", post(late))
            .layer(TransactionLayer::new(world.manager.clone()).options(move |_| limit.clone()))
    };
    let request = || Request::post("/").body(Body::empty()).unwrap();
    let response = app(Duration::from_secs(2)).oneshot(request()).await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(body(response).await.contains("#store-unavailable"));
    world.manager.shutdown(Duration::from_secs(1)).await.unwrap();
    let response = app(Duration::ZERO).oneshot(request()).await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(body(response).await.contains("#store-unavailable"));
}

/// A handler that swallowed the store's error commits, and the commit finds out.
#[tokio::test]
async fn a_failure_that_the_handler_keeps_for_itself_is_the_commits() {
    let world = World::new().await;
    world.a.fail(Step::Flush, || BranchError::conflict("statement failed before"));
    let (a, b, journal) = (world.a.clone(), world.b.clone(), Arc::new(world.journal.clone()));
    let app: Router = Router::new()
        .route(
            "/",
            post(async move |tx: Tx| {
                let _ = work(&tx, &a, &b, &journal).await;
                StatusCode::OK
            }),
        )
        .layer(TransactionLayer::new(world.manager.clone()));
    let response = app.oneshot(Request::post("/").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 409);
    assert!(response.extensions().get::<Ended>().unwrap().retryable);
}
