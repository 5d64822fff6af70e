//! axum's extractor, in a router that is called directly and over a socket.

#![allow(clippy::unwrap_used)]

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;
use unanimous::http::{TransactionLayer, default_commit_veto};
use unanimous::{BranchError, JoinError, Outcome, Tx};

use crate::http_support::{ABORTED, COMMITTED, Journal, Step, Store, World, work};
use crate::support::warnings::Warnings;

type Stores = (Store, Store, Journal);

/// What users write: an error type of their own, and `?` on a join.
struct Failed(JoinError);

impl From<JoinError> for Failed {
    fn from(error: JoinError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0.to_string()).into_response()
    }
}

async fn order(tx: Tx, State((a, b, journal)): State<Stores>) -> Result<(StatusCode, String), Failed> {
    let first = tx.join(&a).await?;
    drop(first);
    work(&tx, &a, &b, &journal).await?;
    Ok((StatusCode::CREATED, tx.id().to_string()))
}

async fn fall_over(tx: Tx, State((a, b, journal)): State<Stores>) -> Result<(), Failed> {
    work(&tx, &a, &b, &journal).await?;
    panic!("out of ink")
}

fn routes(world: &World) -> Router {
    Router::new().route("/orders", post(order)).route("/falls", post(fall_over)).with_state((
        world.a.clone(),
        world.b.clone(),
        world.journal.clone(),
    ))
}

fn request(method: &str, path: &str) -> Request<Body> {
    Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
}

async fn text(response: Response) -> String {
    String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn a_handler_joins_and_the_layer_commits() {
    let world = World::new().await;
    let app = routes(&world).layer(TransactionLayer::new(world.manager.clone()).commit_veto(default_commit_veto));
    let response = app.clone().oneshot(request("POST", "/orders")).await.unwrap();
    assert_eq!(response.status(), 201);
    assert_ne!(text(response).await, "");
    world.assert_ended(&COMMITTED, Outcome::Committed);
    // No handler, no transaction.
    assert_eq!(app.clone().oneshot(request("GET", "/orders")).await.unwrap().status(), 405);
    assert_eq!(app.oneshot(request("GET", "/nowhere")).await.unwrap().status(), 404);
    world.assert_ended(&COMMITTED, Outcome::Committed);
}

#[tokio::test]
async fn without_the_layer_the_extractor_refuses_plainly() {
    let world = World::new().await;
    let response = routes(&world).oneshot(request("POST", "/orders")).await.unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem = text(response).await;
    assert!(problem.contains("#no-transaction\"") && problem.contains("has none"), "{problem}");
    assert_eq!(world.journal.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn the_refusal_tells_the_log_what_to_add() {
    let warnings = Warnings::collect();
    let app = Router::new().route("/", get(async |_: Tx| "unreachable"));
    assert_eq!(app.oneshot(request("GET", "/")).await.unwrap().status(), 500);
    assert_eq!(warnings.with(&["ERROR", "TransactionLayer::new(manager)"]).len(), 1);
}

#[tokio::test]
async fn an_optional_transaction_is_none_where_no_layer_is_active() {
    let world = World::new().await;
    let app = Router::new().route("/", get(async |tx: Option<Tx>| if tx.is_some() { "some" } else { "none" }));
    assert_eq!(text(app.clone().oneshot(request("GET", "/")).await.unwrap()).await, "none");
    let layer = TransactionLayer::new(world.manager.clone());
    let inside = app.clone().layer(layer.clone());
    assert_eq!(text(inside.oneshot(request("GET", "/")).await.unwrap()).await, "some");
    let left_out = app.layer(layer.activate(|parts| parts.uri.path() != "/"));
    assert_eq!(text(left_out.oneshot(request("GET", "/")).await.unwrap()).await, "none");
}

#[tokio::test]
async fn a_stream_after_the_head_is_outside_of_the_transaction() {
    let world = World::new().await;
    let stores = (world.a.clone(), world.b.clone(), world.journal.clone());
    let app = Router::new()
        .route(
            "/",
            get(async |tx: Tx, State((a, b, journal)): State<Stores>| {
                work(&tx, &a, &b, &journal).await.unwrap();
                let late = futures_util::stream::once(async move {
                    journal.add(format_args!("stream {}", unanimous::current().is_some()));
                    let refused = matches!(tx.join(&a).await, Err(JoinError::NotActive { .. }));
                    journal.add(format_args!("stream refused {refused}"));
                    Ok::<_, std::io::Error>("streamed")
                });
                Body::from_stream(late)
            }),
        )
        .with_state(stores)
        .layer(TransactionLayer::new(world.manager.clone()));
    let response = app.oneshot(request("GET", "/")).await.unwrap();
    world.assert_ended(&COMMITTED, Outcome::Committed);
    assert_eq!(world.journal.of("stream"), Vec::<String>::new());
    assert_eq!(text(response).await, "streamed");
    assert_eq!(world.journal.of("stream"), ["false", "refused true"]);
    world.assert_ended(&COMMITTED, Outcome::Committed);
}

/// One request over a connection of its own; what came back until the server closed it.
async fn over_a_socket(app: Router, path: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let mut client = TcpStream::connect(address).await.unwrap();
    let request = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    server.abort();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn over_a_socket_a_commit_is_a_201() {
    let world = World::new().await;
    let app = routes(&world).layer(TransactionLayer::new(world.manager.clone()));
    let answer = over_a_socket(app, "/orders").await;
    assert!(answer.starts_with("HTTP/1.1 201 Created\r\n"), "{answer}");
    world.assert_ended(&COMMITTED, Outcome::Committed);
}

#[tokio::test]
async fn over_a_socket_a_conflict_is_a_409_with_a_problem_document() {
    let world = World::new().await;
    world.a.fail(Step::Flush, || BranchError::conflict("secret"));
    let app = routes(&world).layer(TransactionLayer::new(world.manager.clone()));
    let answer = over_a_socket(app, "/orders").await;
    assert!(answer.starts_with("HTTP/1.1 409 Conflict\r\n"), "{answer}");
    assert!(answer.contains("content-type: application/problem+json\r\n"), "{answer}");
    assert!(!answer.contains("secret"), "{answer}");
    assert_eq!(world.journal.of("end"), ["aborted"]);
}

#[tokio::test]
async fn over_a_socket_a_panic_closes_the_connection_after_the_abort() {
    let world = World::new().await;
    let app = routes(&world).layer(TransactionLayer::new(world.manager.clone()));
    let answer = over_a_socket(app, "/falls").await;
    assert_eq!(answer, "");
    world.assert_ended(&ABORTED, Outcome::Aborted);
}
