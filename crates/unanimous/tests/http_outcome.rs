//! The services that tell: a transaction's outcome by its id, and whether the manager is ready; mounted in axum's routers and alone.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::ServiceExt;
use unanimous::http::{OutcomeService, ReadinessService};
use unanimous::{BoxError, Capability, TransactionManager};

use crate::http_support::{Step, World};
use crate::support::{Call, Fault, MemoryStore, ended, unknown};

fn request(method: &str, path: &str) -> Request<Body> {
    Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
}

/// Status, `Content-Type`, `Retry-After` and the text.
async fn told<B>(response: Response<B>) -> (u16, String, Option<String>, String)
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (head, body) = response.into_parts();
    let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(header("cache-control").as_deref(), Some("no-store"));
    let text = to_bytes(Body::new(body), 1 << 20).await.unwrap();
    let text = String::from_utf8(text.to_vec()).unwrap();
    (head.status.as_u16(), header("content-type").unwrap(), header("retry-after"), text)
}

fn app(manager: &TransactionManager) -> Router {
    let outcome = OutcomeService::new(manager.clone());
    Router::new().route_service("/transactions/{id}", outcome.clone()).nest_service("/deep/down", outcome)
}

fn json(outcome: &str, id: impl std::fmt::Display) -> String {
    format!(r#"{{"transaction":"{id}","outcome":"{outcome}"}}"#)
}

#[tokio::test]
async fn each_outcome_in_its_words() {
    let world = World::new().await;
    let app = app(&world.manager);
    let ask = async |path: String| told(app.clone().oneshot(request("GET", &path)).await.unwrap()).await;

    let tx = world.manager.begin();
    let id = tx.id();
    tx.join(&world.a).await.unwrap();
    tx.join(&world.b).await.unwrap();
    let in_doubt = (200, "application/json".to_owned(), Some("1".to_owned()), json("in doubt", id));
    assert_eq!(ask(format!("/transactions/{id}")).await, in_doubt);
    world.b.hold(Step::Prepare);
    let commit = tx.commit();
    world.b.reached(Step::Prepare).await;
    assert_eq!(ask(format!("/transactions/{id}")).await, in_doubt);
    world.b.release(Step::Prepare);
    commit.await.unwrap();
    let committed = (200, "application/json".to_owned(), None, json("committed", id));
    assert_eq!(ask(format!("/transactions/{id}")).await, committed);
    assert_eq!(ask(format!("/deep/down/{id}?again=1")).await, committed, "mounted elsewhere");

    let tx = world.manager.begin();
    let id = tx.id();
    tx.abort().await;
    let aborted = (200, "application/json".to_owned(), None, json("aborted", id));
    assert_eq!(ask(format!("/transactions/{id}")).await, aborted);

    let next = world.manager.owner().transaction(id.sequence + 1);
    let (status, kind, _, text) = ask(format!("/transactions/{next}")).await;
    assert_eq!((status, kind.as_str()), (404, "application/problem+json"));
    assert!(text.contains("#outcome-not-known") && text.contains(&format!(r#""transaction":"{next}""#)), "{text}");

    for wrong in ["1", "%20", "x.1.y.2", &"9".repeat(5000)] {
        let (status, kind, _, text) = ask(format!("/transactions/{wrong}")).await;
        assert_eq!((status, kind.as_str()), (400, "application/problem+json"), "{wrong}");
        assert!(text.contains("#not-an-id"), "{text}");
    }
    assert_eq!(ask("/deep/down/".to_owned()).await.0, 400);
}

#[tokio::test]
async fn only_get_and_head() {
    let world = World::new().await;
    let tx = world.manager.begin();
    let id = tx.id();
    tx.abort().await;
    let app = app(&world.manager).route_service("/ready", ReadinessService::new(world.manager.clone()));
    for path in [format!("/transactions/{id}"), "/ready".to_owned()] {
        let response = app.clone().oneshot(request("DELETE", &path)).await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()["allow"]),
            (StatusCode::METHOD_NOT_ALLOWED, &"GET, HEAD".parse().unwrap())
        );
        let get = app.clone().oneshot(request("GET", &path)).await.unwrap();
        let head = app.clone().oneshot(request("HEAD", &path)).await.unwrap();
        let (head, body) = head.into_parts();
        assert_eq!(head.status, get.status());
        let (_, _, _, text) = told(get).await;
        assert_eq!(head.headers["content-length"], text.len().to_string());
        assert_eq!(to_bytes(body, 1 << 20).await.unwrap().len(), 0);
    }
}

/// Without axum, with the body that a service wants.
#[tokio::test]
async fn as_a_plain_tower_service() {
    let world = World::new().await;
    let tx = world.manager.begin();
    let path = format!("/{}", tx.id());
    let request = || http::Request::builder().uri(&path).body(()).unwrap();
    let response: Response<Full<bytes::Bytes>> =
        OutcomeService::new(world.manager.clone()).oneshot(request()).await.unwrap();
    assert_eq!(told(response).await.3, json("in doubt", tx.id()));
    let response: Response<String> = OutcomeService::with_body(world.manager.clone()).oneshot(request()).await.unwrap();
    assert_eq!(response.body(), &json("in doubt", tx.id()));
    tx.abort().await;
}

/// What a client reads after a 500 of the kind `commit-unknown`, by the id that it was given.
#[tokio::test]
async fn a_client_finds_out_after_an_unknown_outcome() {
    let mut world = crate::support::World::new();
    let (a, b) = (world.two_phase("a"), world.two_phase("b"));
    let (manager, log) = world.start().await;
    let tx = manager.begin();
    let id = tx.id();
    tx.join(&a).await.unwrap().put("row").unwrap();
    tx.join(&b).await.unwrap().put("row").unwrap();
    log.fail(Fault::LostDone);
    unknown(ended(tx.commit()).await);
    let ask = async |manager: &TransactionManager| {
        told(app(manager).oneshot(request("GET", &format!("/transactions/{id}"))).await.unwrap()).await
    };
    assert_eq!(ask(&manager).await, (200, "application/json".to_owned(), Some("1".to_owned()), json("in doubt", id)));
    drop(manager);
    let (manager, _log) = world.start().await;
    assert_eq!(ask(&manager).await, (200, "application/json".to_owned(), None, json("committed", id)));
}

#[tokio::test]
async fn readiness_over_http() {
    let mut world = crate::support::World::new();
    world.two_phase("b");
    let a = MemoryStore::new("a", Capability::TwoPhase, &world.journal).named("a \"quoted\"");
    let (builder, log) = world.builder();
    let manager = builder.resource(a.clone()).build().await.unwrap();
    let app = Router::new().route_service("/ready", ReadinessService::new(manager.clone()));
    let ask = async || {
        let (status, kind, _, text) = told(app.clone().oneshot(request("GET", "/ready")).await.unwrap()).await;
        assert_eq!(kind, "application/json");
        (status, text)
    };
    assert_eq!(ask().await, (200, r#"{"ready":true,"in_doubt":0,"unreachable":[]}"#.to_owned()));
    a.fail_always(Call::List, Fault::Refused);
    manager.recover().await;
    let listed = r#"{"ready":true,"in_doubt":0,"unreachable":["a \"quoted\""]}"#;
    assert_eq!(ask().await, (200, listed.to_owned()), "one dead store stops nobody else");
    log.set_full(true);
    let refuses = r#"{"ready":false,"why":"no decisions","in_doubt":0,"unreachable":["a \"quoted\""]}"#;
    assert_eq!(ask().await, (503, refuses.to_owned()));
    log.set_full(false);
    a.heal(Call::List);
    manager.recover().await;
    manager.shutdown(Duration::from_secs(60)).await.unwrap();
    assert_eq!(ask().await, (503, r#"{"ready":false,"why":"shutting down","in_doubt":0,"unreachable":[]}"#.to_owned()));
}
