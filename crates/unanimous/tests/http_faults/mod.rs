//! What a client that fails can see, and what the stores hold then: the table of docs/http.md, each of its cells with real sockets,
//! PostgreSQL, a folder and a log in files.
//!
//! A request is held at a stage by a gate, the fault happens, the server takes notice of it; then the request is let go on. The clock
//! stands still but where a test moves it, so that a time limit passes at the stage that is meant, however slow the machine is.

// Clippy knows test functions, but not what helps them.
#![allow(clippy::unwrap_used)]

mod client;
mod more;
mod world;

use std::fmt;

use client::{Client, Protocol, Sent, Verdict};
use world::{LIMIT, Stage, Stores, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The client takes its request back: resets its connection, or the stream with CANCEL.
    Reset,
    /// The client shuts its side of the connection down, and reads on.
    HalfClose,
    /// A time limit outside of the layer passes.
    Timeout,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Reset => "client reset",
            Fault::HalfClose => "half-close",
            Fault::Timeout => "timeout",
        })
    }
}

/// What one fault at one stage comes to.
#[derive(Debug)]
struct Cell {
    fault: Fault,
    stage: Stage,
    protocol: Protocol,
    sees: Verdict,
    stores: Stores,
}

macro_rules! cells {
    ($($name:ident: $fault:ident $stage:ident $protocol:ident => $sees:expr, $stores:ident;)*) => {
        const CELLS: &[Cell] = {
            use Verdict::{Broken, Nothing, Whole};
            &[$(Cell {
                fault: Fault::$fault,
                stage: Stage::$stage,
                protocol: Protocol::$protocol,
                sees: $sees,
                stores: Stores::$stores,
            }),*]
        };

        mod each {
            use super::{CELLS, Fault, Stage, Protocol};

            $(#[tokio::test(start_paused = true)]
            async fn $name() {
                let wanted = (Fault::$fault, Stage::$stage, Protocol::$protocol);
                let cell = CELLS.iter().find(|cell| (cell.fault, cell.stage, cell.protocol) == wanted);
                super::run(cell.unwrap()).await;
            })*
        }
    };
}

cells! {
    reset_body_http1: Reset Body Http1 => Nothing, Neither;
    reset_body_http2: Reset Body Http2 => Nothing, Neither;
    reset_handler_http1: Reset Handler Http1 => Nothing, Neither;
    reset_handler_http2: Reset Handler Http2 => Nothing, Neither;
    reset_prepare_http1: Reset Prepare Http1 => Nothing, Both;
    reset_prepare_http2: Reset Prepare Http2 => Nothing, Both;
    reset_decision_http1: Reset Decision Http1 => Nothing, Both;
    reset_decision_http2: Reset Decision Http2 => Nothing, Both;
    reset_phase_two_http1: Reset PhaseTwo Http1 => Nothing, Both;
    reset_phase_two_http2: Reset PhaseTwo Http2 => Nothing, Both;
    reset_response_http1: Reset Response Http1 => Broken(201), Both;
    reset_response_http2: Reset Response Http2 => Broken(201), Both;
    half_close_body_http1: HalfClose Body Http1 => Whole(400), Neither;
    half_close_body_http2: HalfClose Body Http2 => Nothing, Neither;
    half_close_handler_http1: HalfClose Handler Http1 => Nothing, Neither;
    half_close_handler_http2: HalfClose Handler Http2 => Nothing, Neither;
    half_close_prepare_http1: HalfClose Prepare Http1 => Nothing, Both;
    half_close_prepare_http2: HalfClose Prepare Http2 => Nothing, Both;
    half_close_decision_http1: HalfClose Decision Http1 => Nothing, Both;
    half_close_decision_http2: HalfClose Decision Http2 => Nothing, Both;
    half_close_phase_two_http1: HalfClose PhaseTwo Http1 => Nothing, Both;
    half_close_phase_two_http2: HalfClose PhaseTwo Http2 => Nothing, Both;
    half_close_response_http1: HalfClose Response Http1 => Broken(201), Both;
    half_close_response_http2: HalfClose Response Http2 => Broken(201), Both;
    timeout_body_http1: Timeout Body Http1 => Whole(408), Neither;
    timeout_body_http2: Timeout Body Http2 => Whole(408), Neither;
    timeout_handler_http1: Timeout Handler Http1 => Whole(408), Neither;
    timeout_handler_http2: Timeout Handler Http2 => Whole(408), Neither;
    timeout_prepare_http1: Timeout Prepare Http1 => Whole(408), Both;
    timeout_prepare_http2: Timeout Prepare Http2 => Whole(408), Both;
    timeout_decision_http1: Timeout Decision Http1 => Whole(408), Both;
    timeout_decision_http2: Timeout Decision Http2 => Whole(408), Both;
    timeout_phase_two_http1: Timeout PhaseTwo Http1 => Whole(408), Both;
    timeout_phase_two_http2: Timeout PhaseTwo Http2 => Whole(408), Both;
    timeout_response_http1: Timeout Response Http1 => Whole(201), Both;
    timeout_response_http2: Timeout Response Http2 => Whole(201), Both;
}

/// Whether what a client saw says something else of its request than the stores do.
fn contradicts(saw: Verdict, stores: Stores) -> bool {
    match (saw, stores) {
        (_, Stores::Torn) => true,
        (Verdict::Nothing, _) => false,
        // Somebody gave up waiting, which says nothing of what was waited for.
        (Verdict::Broken(408 | 504) | Verdict::Whole(408 | 504), _) => false,
        (Verdict::Broken(status) | Verdict::Whole(status), Stores::Both) => status >= 400,
        (Verdict::Broken(status) | Verdict::Whole(status), Stores::Neither) => status < 400,
    }
}

/// One request, and one fault in it.
async fn run(cell: &Cell) {
    let world = World::new(Some(cell.stage)).await;
    let mut client = Client::connect(cell.protocol, world.address).await;
    let sent = if cell.stage == Stage::Body { Sent::Half } else { Sent::Whole };
    client.post("/orders/tea", sent).await;
    if cell.stage == Stage::Response {
        client.begin_to_read().await;
    } else {
        world.journal.until(&format!("at {}", cell.stage)).await;
    }

    let saw = match cell.fault {
        Fault::Reset => Some(client.reset()),
        Fault::HalfClose => {
            client.half_close().await;
            None
        }
        Fault::Timeout => {
            tokio::time::advance(LIMIT).await;
            None
        }
    };
    if cell.stage != Stage::Response {
        world.journal.until("left the service").await;
    } else if cell.fault != Fault::Timeout {
        world.journal.until("left the body").await;
    } else {
        // The limit was for the head, which is out: there is nothing to take notice of.
        world.release();
    }
    // What a client that has reset can have seen, it saw before. The others are answered while the request is held.
    let saw = match saw {
        Some(saw) => saw,
        None => client.verdict().await,
    };
    if let Stage::Prepare | Stage::Decision | Stage::PhaseTwo = cell.stage {
        assert_eq!(world.journal.of("report"), [""; 0], "ended without what is held");
    }
    world.release();

    let outcome = if cell.stores == Stores::Both { "committed" } else { "aborted" };
    let stores = world.ended(&[outcome], "tea").await;
    assert!(!contradicts(saw, stores), "the client saw {saw:?}, and the stores have it: {stores:?}");
    assert_eq!((saw, stores), (cell.sees, cell.stores), "in {:#?}", world.journal.entries());
}

#[test]
fn the_rule_knows_lies() {
    use Stores::{Both, Neither, Torn};
    use Verdict::{Broken, Nothing, Whole};
    for (saw, stores) in [(Whole(201), Neither), (Broken(201), Neither), (Whole(503), Both), (Broken(409), Both)] {
        assert!(contradicts(saw, stores), "{saw:?} {stores:?}");
    }
    for (saw, stores) in [(Whole(201), Both), (Broken(201), Both), (Whole(503), Neither), (Whole(408), Neither)] {
        assert!(!contradicts(saw, stores), "{saw:?} {stores:?}");
    }
    for saw in [Nothing, Broken(201), Whole(201), Whole(408), Whole(503)] {
        assert!(contradicts(saw, Torn), "{saw:?}");
    }
    assert!(!contradicts(Nothing, Both) && !contradicts(Nothing, Neither) && !contradicts(Whole(504), Both));
}

#[test]
fn the_document_has_the_table_that_is_tested() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/http.md");
    let document = std::fs::read_to_string(path).unwrap();
    let table = table();
    assert!(document.contains(&table), "docs/http.md should have this table:\n\n{table}");
}

/// All combinations, a row for both protocols: the cells as the document shows them.
fn table() -> String {
    let mut table = String::from(
        "| the fault | while it is at | HTTP/1.1: the client sees | HTTP/2: the client sees | the stores |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    let mut cells = CELLS.iter();
    for fault in [Fault::Reset, Fault::HalfClose, Fault::Timeout] {
        for stage in world::STAGES {
            let [one, two] = [Protocol::Http1, Protocol::Http2].map(|protocol| {
                let cell = cells.next().expect("no combination is left out");
                assert_eq!((cell.fault, cell.stage, cell.protocol), (fault, stage, protocol), "out of order");
                cell
            });
            assert_eq!(
                one.stores, two.stores,
                "the protocols differ in {fault}, {stage}: the table needs a column more"
            );
            let stores = match one.stores {
                Stores::Both => "both have it",
                Stores::Neither => "neither has it",
                Stores::Torn => unreachable!("no cell allows it"),
            };
            table += &format!("| {fault} | {stage} | {} | {} | {stores} |\n", one.sees, two.sees);
        }
    }
    assert!(cells.next().is_none(), "a combination is there twice");
    table
}
