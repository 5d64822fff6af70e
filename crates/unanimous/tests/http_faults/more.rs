//! What the table has no room for: connections that go on, requests in a row, bodies that are refused or not read, and HTTP/2's other
//! ways to give up.

use super::client::{Client, Http1, Protocol, Sent, Verdict};
use super::contradicts;
use super::world::{LIMIT, STAGES, Stage, Stores, World};

/// A request that is held at this stage, and its client.
async fn held(stage: Stage, protocol: Protocol, path: &str) -> (World, Client) {
    let world = World::new(Some(stage)).await;
    let mut client = Client::connect(protocol, world.address).await;
    client.post(path, if stage == Stage::Body { Sent::Half } else { Sent::Whole }).await;
    world.journal.until(&format!("at {stage}")).await;
    (world, client)
}

async fn is_alive_after_a_timeout(stage: Stage, protocol: Protocol) -> bool {
    let (world, mut client) = held(stage, protocol, "/orders/tea").await;
    tokio::time::advance(LIMIT).await;
    assert_eq!(client.verdict().await, Verdict::Whole(408), "{stage}");
    let while_it_is_held = client.is_alive().await;
    world.release();
    let outcome = if stage < Stage::Prepare { "aborted" } else { "committed" };
    world.ended(&[outcome], "tea").await;
    assert_eq!(client.is_alive().await, while_it_is_held, "{stage}");
    while_it_is_held
}

#[tokio::test(start_paused = true)]
async fn a_connection_goes_on_after_a_timeout() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        for stage in [Stage::Handler, Stage::Prepare, Stage::Decision, Stage::PhaseTwo] {
            assert!(is_alive_after_a_timeout(stage, protocol).await, "{stage} {protocol:?}");
        }
    }
}

/// What is left of the body stands in the next request's way; streams don't stand in each other's.
#[tokio::test(start_paused = true)]
async fn a_connection_with_half_a_body_goes_on_in_http2_only() {
    assert!(!is_alive_after_a_timeout(Stage::Body, Protocol::Http1).await);
    assert!(is_alive_after_a_timeout(Stage::Body, Protocol::Http2).await);
}

/// Why docs/http.md says: ask for a veto.
#[tokio::test(start_paused = true)]
async fn without_a_veto_a_broken_body_is_answered_400_and_committed() {
    let world = World::with(Some(Stage::Body), |layer| layer).await;
    let mut client = Client::connect(Protocol::Http1, world.address).await;
    client.post("/orders/tea", Sent::Half).await;
    world.journal.until("at body").await;
    client.half_close().await;
    let saw = client.verdict().await;
    let stores = world.ended(&["committed"], "tea").await;
    assert_eq!((saw, stores), (Verdict::Whole(400), Stores::Both));
    assert!(contradicts(saw, stores));
}

fn bare_post(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
}

/// Two requests, sent at once; the first one is held at this stage.
async fn pipelined(stage: Stage) -> (World, Http1) {
    let world = World::new(Some(stage)).await;
    let mut client = Http1::connect(world.address).await;
    assert!(client.write(&(bare_post("/orders/tea") + &bare_post("/orders/rum"))).await);
    world.journal.until(&format!("at {stage}")).await;
    (world, client)
}

#[tokio::test(start_paused = true)]
async fn pipelined_requests_have_a_transaction_each_one_after_the_other() {
    let (world, mut client) = pipelined(Stage::PhaseTwo).await;
    assert_eq!(world.journal.of("at"), ["handler", "prepare", "decision", "phase two"]);
    world.release();
    assert_eq!(client.verdict().await, Verdict::Whole(201));
    assert_eq!(client.verdict().await, Verdict::Whole(201));
    for item in ["tea", "rum"] {
        assert_eq!(world.ended(&["committed", "committed"], item).await, Stores::Both);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pipelined_request_has_its_turn_when_the_first_has_timed_out() {
    let (world, mut client) = pipelined(Stage::Handler).await;
    tokio::time::advance(LIMIT).await;
    assert_eq!(client.verdict().await, Verdict::Whole(408));
    world.release();
    assert_eq!(client.verdict().await, Verdict::Whole(201));
    assert_eq!(world.ended(&["aborted", "committed"], "tea").await, Stores::Neither);
    assert_eq!(world.ended(&["aborted", "committed"], "rum").await, Stores::Both);
}

/// hyper looks whether the client is there only where it would read on: not while a next request waits in its buffer.
#[tokio::test(start_paused = true)]
async fn a_reset_behind_a_pipelined_request_is_not_noticed_and_the_first_commits() {
    let (world, mut client) = pipelined(Stage::Handler).await;
    let saw = client.reset();
    world.release();
    world.journal.until("report committed").await;
    assert_eq!(world.journal.of("report")[0], "committed");
    assert_eq!((saw, world.stored("tea")), (Verdict::Nothing, Stores::Both));
    // Whether it began depends on when the server's write fails.
    assert!(!contradicts(saw, world.stored("rum")));
}

#[tokio::test(start_paused = true)]
async fn a_reset_behind_an_unread_body_is_noticed_in_http2_only() {
    for (protocol, stores) in [(Protocol::Http1, Stores::Both), (Protocol::Http2, Stores::Neither)] {
        let world = World::new(Some(Stage::Handler)).await;
        let mut client = Client::connect(protocol, world.address).await;
        client.post("/unread/tea", Sent::Half).await;
        world.journal.until("at handler").await;
        let saw = client.reset();
        if stores == Stores::Neither {
            world.journal.until("left the service").await;
        }
        world.release();
        let outcome = if stores == Stores::Both { "committed" } else { "aborted" };
        assert_eq!((saw, world.ended(&[outcome], "tea").await), (Verdict::Nothing, stores), "{protocol:?}");
    }
}

/// The client that asks first is told before it sends the body, and what was done so far is undone.
#[tokio::test(start_paused = true)]
async fn an_expected_continue_that_is_refused() {
    let world = World::new(None).await;
    let mut client = Http1::connect(world.address).await;
    assert!(client.write(&expecting("/refuse/tea")).await);
    assert_eq!(client.verdict().await, Verdict::Whole(413));
    assert_eq!(world.ended(&["aborted"], "tea").await, Stores::Neither);
    // The server can't know whether the body comes all the same.
    assert_eq!(client.verdict().await, Verdict::Nothing);
}

#[tokio::test(start_paused = true)]
async fn an_expected_continue_that_is_accepted() {
    let world = World::new(None).await;
    let mut client = Http1::connect(world.address).await;
    assert!(client.write(&expecting("/orders/tea")).await);
    assert_eq!(client.verdict().await, Verdict::Whole(100));
    assert_eq!(world.journal.of("report"), [""; 0]);
    assert!(client.write("body").await);
    assert_eq!(client.verdict().await, Verdict::Whole(201));
    assert_eq!(world.ended(&["committed"], "tea").await, Stores::Both);
}

fn expecting(path: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_stream_leaves_the_others_alone() {
    let (world, mut client) = held(Stage::Prepare, Protocol::Http2, "/orders/tea").await;
    assert_eq!(client.reset(), Verdict::Nothing);
    assert!(client.is_alive().await);
    world.release();
    assert_eq!(world.ended(&["committed"], "tea").await, Stores::Both);
}

/// The whole connection under the stream, at each stage: as in HTTP/1.1.
#[tokio::test(start_paused = true)]
async fn an_http2_connection_that_is_reset() {
    for stage in STAGES {
        let world = World::new(Some(stage)).await;
        let mut client = Client::connect(Protocol::Http2, world.address).await;
        client.post("/orders/tea", if stage == Stage::Body { Sent::Half } else { Sent::Whole }).await;
        let (reached, left, sees) = if stage == Stage::Response {
            client.begin_to_read().await;
            ("at handler".to_owned(), "left the body", Verdict::Broken(201))
        } else {
            (format!("at {stage}"), "left the service", Verdict::Nothing)
        };
        world.journal.until(&reached).await;
        let Client::Http2(client) = client else { unreachable!() };
        assert_eq!(client.reset().await, sees, "{stage}");
        world.journal.until(left).await;
        world.release();
        let (outcome, stores) =
            if stage < Stage::Prepare { ("aborted", Stores::Neither) } else { ("committed", Stores::Both) };
        assert_eq!(world.ended(&[outcome], "tea").await, stores, "{stage}");
    }
}

/// A body that ends before its announced length is an error of the stream, not a short body.
#[tokio::test(start_paused = true)]
async fn an_http2_body_that_ends_early() {
    let (world, mut client) = held(Stage::Body, Protocol::Http2, "/orders/tea").await;
    let Client::Http2(stream) = &mut client else { unreachable!() };
    stream.end_early();
    world.journal.until("left the service").await;
    assert_eq!(client.verdict().await, Verdict::Nothing);
    assert_eq!(world.ended(&["aborted"], "tea").await, Stores::Neither);
}
