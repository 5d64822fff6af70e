//! Requests with an `Idempotency-Key`, on PostgreSQL and on SQLite, over real sockets.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use axum::Router;
use axum::http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use unanimous::http::default_commit_veto;

use crate::http_idempotency_support::{OnPostgres, OnSqlite, PATIENCE, Place, World, order_with, send, serve};

/// Each of these, on both.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::OnPostgres::new()).await;
            })*
        }
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::OnSqlite::new().await).await;
            })*
        }
    };
}

on_both![
    a_repeat_gets_the_first_response_again,
    another_process_gives_the_first_response_again,
    of_many_at_once_one_executes,
    many_that_repeat_until_they_are_answered_execute_once,
    another_request_under_the_same_key_is_refused,
    what_aborts_keeps_nothing,
    what_commits_is_kept_whatever_its_status,
    a_key_that_has_expired_is_new,
    each_user_has_keys_of_its_own,
    each_scope_has_keys_of_its_own,
    bodies_are_bounded,
    a_body_that_does_not_come_is_not_waited_for,
    what_can_not_be_kept_aborts,
    other_requests_pass_through,
    a_client_that_goes_away_leaves_its_key_free,
    an_inner_layer_steps_aside,
    what_a_nested_router_strips_is_part_of_the_request,
    what_the_application_says_is_part_of_the_request,
];

async fn a_repeat_gets_the_first_response_again(place: impl Place) {
    let world = World::new(&place).await;
    let server = world.serve().await;
    let first = order_with(&server, "\"k-1\"", "tea").await;
    assert_eq!(first.status, 201);
    assert_eq!(first.body, "1: tea\u{fc}\0".as_bytes());
    assert!(!first.replayed());
    assert_eq!(first.header("set-cookie"), Some("order=1"));
    for key in ["\"k-1\"", "k-1"] {
        let again = order_with(&server, key, "tea").await;
        assert_eq!((again.status, &again.body), (first.status, &first.body));
        assert!(again.replayed());
        for name in ["content-type", "location", "etag", "link", "content-length"] {
            assert_eq!(again.all(name), first.all(name), "{name}");
            assert!(first.header(name).is_some(), "{name}");
        }
        assert_eq!(again.header("unanimous-transaction"), first.header("x-transaction"), "the first one's");
        for name in ["set-cookie", "x-number"] {
            assert_eq!(again.header(name), None, "{name} is not kept");
        }
    }
    let other = order_with(&server, "k-2", "tea").await;
    assert_eq!((other.status, &*other.body), (201, "2: tea\u{fc}\0".as_bytes()));
    assert_eq!(world.counter.executed(), ["tea", "tea"]);
    assert_eq!(place.orders(), ["tea", "tea"]);
    let layer = world.layer().keep_header("x-number".parse().unwrap());
    let transactions = world.transactions().transaction_header("x-first".parse().unwrap());
    let more = serve(world.routes().layer(layer).layer(transactions)).await;
    let first = order_with(&more, "k-3", "rum").await;
    let again = order_with(&more, "k-3", "rum").await;
    assert_eq!((again.header("x-number"), again.header("x-first")), (Some("3"), first.header("x-transaction")));
}

async fn another_process_gives_the_first_response_again(place: impl Place) {
    let first = World::new(&place).await;
    let answer = order_with(&first.serve().await, "k", "tea").await;
    let second = World::new(&place).await;
    let again = order_with(&second.serve().await, "k", "tea").await;
    assert_eq!((again.status, again.body), (201, answer.body));
    assert_eq!(second.counter.executed(), Vec::<String>::new());
    assert_eq!(place.orders(), ["tea"]);
}

async fn of_many_at_once_one_executes(place: impl Place) {
    let world = World::new(&place).await;
    let server = world.serve().await;
    world.counter.held.send_replace(true);
    let (first, others) = tokio::join!(order_with(&server, "k", "tea"), async {
        world.counter.until_held(1).await;
        let others: Vec<_> = (0..15).map(|_| order_with(&server, "k", "tea")).collect();
        let others = futures_util::future::join_all(others).await;
        world.counter.held.send_replace(false);
        others
    });
    assert_eq!(first.status, 201);
    for other in others {
        other.assert_problem(409, "idempotency-key-in-flight");
        assert_eq!(other.header("retry-after"), Some("1"));
        assert_eq!(other.header("unanimous-transaction"), first.header("x-transaction"), "who has the key");
    }
    let again = order_with(&server, "k", "tea").await;
    assert_eq!((again.status, again.replayed(), again.body), (201, true, first.body));
    assert_eq!(place.orders(), ["tea"]);
}

async fn many_that_repeat_until_they_are_answered_execute_once(place: impl Place) {
    // Two processes, so that the keys in flight of one are not all that stands between them.
    let worlds = [World::new(&place).await, World::new(&place).await];
    let servers = [worlds[0].serve().await, worlds[1].serve().await];
    let until_answered = async |server| {
        loop {
            let reply = order_with(server, "k", "tea").await;
            if reply.status != 409 {
                return reply;
            }
        }
    };
    let replies = futures_util::future::join_all((0..16).map(|number| until_answered(&servers[number % 2]))).await;
    for reply in &replies {
        assert_eq!((reply.status, &reply.body), (201, &replies[0].body));
    }
    assert_eq!(replies.iter().filter(|reply| !reply.replayed()).count(), 1, "one is the first");
    assert_eq!(worlds[0].counter.executed().len() + worlds[1].counter.executed().len(), 1);
    assert_eq!(place.orders(), ["tea"]);
}

async fn another_request_under_the_same_key_is_refused(place: impl Place) {
    let world = World::new(&place).await;
    let server = world.serve().await;
    let key = ("idempotency-key", "k");
    assert_eq!(send(&server, "POST /orders", &[key], "tea").await.unwrap().status, 201);
    for (head, headers, body) in [
        ("POST /orders", &[key][..], "rum"),
        ("POST /orders?now", &[key], "tea"),
        ("POST /bills", &[key], "tea"),
        ("POST /orders", &[key, ("content-type", "text/plain")], "tea"),
    ] {
        let reply = send(&server, head, headers, body).await.unwrap();
        reply.assert_problem(422, "idempotency-key-reused");
        assert_eq!(reply.header("unanimous-transaction"), None, "its transaction has committed, and done nothing");
    }
    assert_eq!(place.orders(), ["tea"]);
    assert!(order_with(&server, "k", "tea").await.replayed());
}

async fn what_aborts_keeps_nothing(place: impl Place) {
    let world = World::new(&place).await;
    let app = world.routes().layer(world.layer()).layer(world.transactions().commit_veto(default_commit_veto));
    let server = serve(app).await;
    for (n, what) in ["fail", "doom", "panic"].into_iter().enumerate() {
        let headers = [("idempotency-key", what), ("x-do", what)];
        for _ in 0..2 {
            let reply = send(&server, "POST /orders", &headers, "tea").await;
            let expected = [Some(500), Some(201), None][n];
            assert_eq!(reply.map(|reply| reply.status), expected, "{what}");
        }
        assert_eq!(world.counter.executed().len(), 3 * n + 2, "{what}: each was executed");
        // The same request, since the header is not part of it.
        let reply = order_with(&server, what, "tea").await;
        assert_eq!((reply.status, reply.replayed()), (201, false), "{what}");
        assert!(order_with(&server, what, "tea").await.replayed(), "{what}");
        assert_eq!(place.orders().len(), n + 1, "{what}");
        assert_eq!(place.kept(), n + 1, "{what}");
    }
}

async fn what_commits_is_kept_whatever_its_status(place: impl Place) {
    let world = World::new(&place).await;
    let server = world.serve().await;
    let headers = [("idempotency-key", "k"), ("x-do", "fail")];
    let first = send(&server, "POST /orders", &headers, "tea").await.unwrap();
    let again = send(&server, "POST /orders", &headers, "tea").await.unwrap();
    assert_eq!((again.status, again.replayed(), again.body), (500, true, first.body));
    assert_eq!(place.orders(), ["tea"]);
}

async fn a_key_that_has_expired_is_new(place: impl Place) {
    let world = World::new(&place).await;
    let server = world.serve_with(world.layer().keep_for(Duration::from_secs(60))).await;
    for _ in 0..2 {
        assert!(!order_with(&server, "k", "tea").await.replayed(), "none, or one that has expired");
        assert!(order_with(&server, "k", "tea").await.replayed());
        place.expire();
    }
    // Another request is none under the same key any more.
    let first = order_with(&server, "k", "rum").await;
    assert_eq!(first.status, 201);
    let again = order_with(&server, "k", "rum").await;
    assert_eq!((again.replayed(), again.body), (true, first.body));
    assert_eq!(place.orders(), ["tea", "tea", "rum"]);
    assert_eq!(place.kept(), 1);
}

#[tokio::test]
#[should_panic(expected = "a minute at least, not for 0ns")]
async fn a_key_that_would_be_none_is_refused() {
    let store = unanimous::postgres::Postgres::from_url("orders", "postgres://localhost/orders").unwrap();
    let _ =
        unanimous::http::IdempotencyLayer::new(unanimous::postgres::PostgresKeys::new(&store)).keep_for(Duration::ZERO);
}

async fn a_body_that_does_not_come_is_not_waited_for(place: impl Place) {
    let world = World::new(&place).await;
    let server = world.serve_with(world.layer().max_request_time(Duration::from_millis(50))).await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let request = "POST /orders HTTP/1.1\r\nhost: localhost\r\nidempotency-key: k\r\ncontent-length: 3\r\n\r\nte";
    client.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    tokio::time::timeout(PATIENCE, client.read_exact(&mut head)).await.expect("an answer").unwrap();
    assert_eq!(&head, b"HTTP/1.1 408");
    assert_eq!(world.counter.executed(), Vec::<String>::new());
}

async fn each_user_has_keys_of_its_own(place: impl Place) {
    let world = World::new(&place).await;
    let server = world.serve().await;
    let order = async |user: &'static str| {
        send(&server, "POST /orders", &[("idempotency-key", "k"), ("x-user", user)], "tea").await.unwrap()
    };
    let (alice, bob) = (order("alice").await, order("bob").await);
    assert_eq!((alice.replayed(), bob.replayed()), (false, false));
    assert_ne!(alice.body, bob.body);
    assert_eq!(order("alice").await.body, alice.body);
    assert_eq!(order("bob").await.body, bob.body);
    assert!(!order_with(&server, "k", "tea").await.replayed(), "nobody is another one");
    assert_eq!(place.orders().len(), 3);
}

async fn each_scope_has_keys_of_its_own(place: impl Place) {
    let world = World::new(&place).await;
    let tenant = |parts: &http::request::Parts| parts.uri.query().unwrap_or_default().to_owned();
    let layer = world.layer().scope(tenant);
    let server = world.serve_with(layer).await;
    let order = async |path: &str, user: &'static str| {
        send(&server, path, &[("idempotency-key", "k"), ("x-user", user)], "tea").await.unwrap()
    };
    let long = format!("POST /orders?{}", "x".repeat(3000));
    for path in ["POST /orders?a", "POST /orders?b", &long] {
        assert!(!order(path, "alice").await.replayed());
        // The scope is all that counts, where there is one.
        assert!(order(path, "bob").await.replayed());
    }
    assert_eq!(place.orders().len(), 3);
}

async fn bodies_are_bounded(place: impl Place) {
    let world = World::new(&place).await;
    let server = world.serve_with(world.layer().max_request_body(10).max_response_body(1000)).await;
    for body in ["eleven byte", &"x".repeat(100_000)] {
        order_with(&server, "k", body).await.assert_problem(413, "request-body-too-large");
    }
    assert_eq!(world.counter.executed(), Vec::<String>::new());
    let headers = [("idempotency-key", "k"), ("x-do", "large")];
    let reply = send(&server, "POST /orders", &headers, "ten bytes.").await.unwrap();
    reply.assert_problem(500, "response-not-kept");
    assert_eq!(place.orders(), Vec::<String>::new(), "it was aborted");
    // Without a key nothing is read nor kept.
    let reply = send(&server, "POST /orders", &[("x-do", "large")], "eleven byte").await.unwrap();
    assert_eq!((reply.status, reply.body.len()), (201, 1001));
    let reply = order_with(&server, "k", "ten bytes.").await;
    assert_eq!((reply.status, reply.replayed()), (201, false));
    assert_eq!(place.orders(), ["eleven byte", "ten bytes."]);
}

async fn what_can_not_be_kept_aborts(place: impl Place) {
    let world = World::new(&place).await;
    let server = world.serve().await;
    for what in ["events", "break"] {
        let headers = [("idempotency-key", what), ("x-do", what)];
        let reply = send(&server, "POST /orders", &headers, "tea").await.unwrap();
        reply.assert_problem(500, "response-not-kept");
        assert_eq!(place.orders(), Vec::<String>::new(), "{what}: it was aborted");
    }
    assert_eq!(world.counter.executed().len(), 2);
}

async fn other_requests_pass_through(place: impl Place) {
    let world = World::new(&place).await;
    let server = world.serve().await;
    let key = ("idempotency-key", "k");
    for (head, headers) in [
        ("GET /orders", &[key][..]),
        ("GET /orders", &[key]),
        ("PUT /orders", &[key]),
        ("PUT /orders", &[key, key]),
        ("POST /orders", &[]),
        ("POST /orders", &[]),
    ] {
        let reply = send(&server, head, headers, "tea").await.unwrap();
        assert_eq!((reply.status, reply.replayed()), (201, false), "{head}");
    }
    assert_eq!((place.orders().len(), world.counter.executed().len()), (6, 6));
    for headers in [&[("idempotency-key", "a b")][..], &[("idempotency-key", "")], &[key, key]] {
        let reply = send(&server, "POST /orders", headers, "tea").await.unwrap();
        reply.assert_problem(400, "idempotency-key-malformed");
    }
    let required = world.serve_with(world.layer().methods([Method::PUT]).required()).await;
    send(&required, "PUT /orders", &[], "tea").await.unwrap().assert_problem(400, "idempotency-key-missing");
    assert_eq!(send(&required, "POST /orders", &[], "tea").await.unwrap().status, 201);
    for replayed in [false, true] {
        assert_eq!(send(&required, "PUT /orders", &[key], "tea").await.unwrap().replayed(), replayed);
    }
    let chosen = world.serve_with(world.layer().when(|parts| parts.uri.path() == "/bills")).await;
    for (path, replayed) in
        [("GET /bills", false), ("GET /bills", true), ("POST /orders", false), ("POST /orders", false)]
    {
        let headers = [("idempotency-key", "chosen")];
        assert_eq!(send(&chosen, path, &headers, "tea").await.unwrap().replayed(), replayed, "{path}");
    }
}

async fn a_client_that_goes_away_leaves_its_key_free(place: impl Place) {
    let world = World::new(&place).await;
    let server = world.serve().await;
    world.counter.held.send_replace(true);
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let request = "POST /orders HTTP/1.1\r\nhost: localhost\r\nidempotency-key: k\r\ncontent-length: 3\r\n\r\ntea";
    client.write_all(request.as_bytes()).await.unwrap();
    world.counter.until_held(1).await;
    order_with(&server, "k", "tea").await.assert_problem(409, "idempotency-key-in-flight");
    drop(client);
    world.counter.held.send_replace(false);
    // Until its transaction has aborted, or where its handler was quicker: committed.
    let answered = async {
        loop {
            let reply = order_with(&server, "k", "tea").await;
            if reply.status != 409 {
                return reply;
            }
        }
    };
    let reply = tokio::time::timeout(PATIENCE, answered).await.expect("the key gets free");
    assert_eq!(reply.status, 201);
    assert_eq!(place.orders(), ["tea"]);
}

async fn an_inner_layer_steps_aside(place: impl Place) {
    let world = World::new(&place).await;
    let app = world.routes().layer(world.layer()).layer(world.layer()).layer(world.transactions());
    let server = serve(app).await;
    for replayed in [false, true] {
        let reply = order_with(&server, "k", "tea").await;
        assert_eq!((reply.status, reply.replayed()), (201, replayed));
    }
    assert_eq!(place.orders(), ["tea"]);
}

async fn what_a_nested_router_strips_is_part_of_the_request(place: impl Place) {
    let world = World::new(&place).await;
    // Also where the layer is inside of the nest, and sees `/orders` only.
    let inside = Router::new().nest("/v1/{account}", world.routes().layer(world.layer()));
    let server = serve(inside.layer(world.transactions())).await;
    let order = async |path: &str| send(&server, path, &[("idempotency-key", "k")], "tea").await.unwrap();
    assert_eq!(order("POST /v1/alice/orders").await.status, 201);
    assert!(order("POST /v1/alice/orders").await.replayed());
    order("POST /v1/bob/orders").await.assert_problem(422, "idempotency-key-reused");
    assert_eq!(place.orders(), ["tea"]);
}

async fn what_the_application_says_is_part_of_the_request(place: impl Place) {
    let world = World::new(&place).await;
    let version = |parts: &http::request::Parts| format!("{:?}", parts.headers.get("x-version"));
    let server = world.serve_with(world.layer().fingerprint(version)).await;
    let order = async |version: &'static str| {
        send(&server, "POST /orders", &[("idempotency-key", "k"), ("x-version", version)], "tea").await.unwrap()
    };
    assert_eq!(order("1").await.status, 201);
    assert!(order("1").await.replayed());
    order("2").await.assert_problem(422, "idempotency-key-reused");
}
