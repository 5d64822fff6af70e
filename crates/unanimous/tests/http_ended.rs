//! What a response says of its request's transaction: how it ended, in its extensions, and its id, in a header; and what a response
//! can say to its layer. What is noted on the transaction.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use http::{HeaderName, HeaderValue, Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use unanimous::http::{AbortTransaction, Ended, Retryable, TransactionLayer, transaction};
use unanimous::{BranchError, Capability, Outcome, TransactionManager, Tx, log::MemoryLog};

use crate::http_support::{ABORTED, Answer, COMMITTED, Step, World, answer, handler, post};

const VOTED: [&str; 4] = ["begin", "flush", "prepare", "rollback"];

/// A way for a transaction to end: what is done before the request, and in its handler, and what must come of it.
struct Way {
    name: &'static str,
    prepare: fn(&World),
    handle: fn(&Tx, &mut Response<String>),
    outcome: Outcome,
    retryable: bool,
    /// What the store a was told.
    calls: &'static [&'static str],
}

const WAYS: [Way; 8] = [
    Way {
        name: "committed",
        prepare: |_| {},
        handle: |_, _| {},
        outcome: Outcome::Committed,
        retryable: false,
        calls: &COMMITTED,
    },
    Way {
        name: "doomed",
        prepare: |_| {},
        handle: |tx, _| tx.doom(),
        outcome: Outcome::Aborted,
        retryable: false,
        calls: &ABORTED,
    },
    Way {
        name: "vetoed",
        prepare: |_| {},
        handle: |_, response| drop(response.headers_mut().insert("x-veto", HeaderValue::from_static("yes"))),
        outcome: Outcome::Aborted,
        retryable: false,
        calls: &ABORTED,
    },
    Way {
        name: "a veto that fails",
        prepare: |_| {},
        handle: |_, response| drop(response.headers_mut().insert("x-veto", HeaderValue::from_static("fail"))),
        outcome: Outcome::Aborted,
        retryable: false,
        calls: &ABORTED,
    },
    Way {
        name: "marked to abort",
        prepare: |_| {},
        handle: |_, response| {
            response.extensions_mut().insert(AbortTransaction);
        },
        outcome: Outcome::Aborted,
        retryable: false,
        calls: &ABORTED,
    },
    Way {
        name: "marked to be repeated",
        prepare: |_| {},
        handle: |_, response| {
            response.extensions_mut().insert(Retryable);
        },
        outcome: Outcome::Aborted,
        retryable: true,
        calls: &ABORTED,
    },
    Way {
        name: "a commit that was refused",
        prepare: |world| world.b.fail(Step::Flush, || BranchError::refused("no")),
        handle: |_, _| {},
        outcome: Outcome::Aborted,
        retryable: false,
        calls: &["begin", "flush", "rollback"],
    },
    Way {
        name: "a conflict at the vote",
        prepare: |world| {
            // b says no when a has voted.
            world.b.hold(Step::Prepare);
            let b = world.b.clone();
            world.a.on(Step::Prepare, move || b.release(Step::Prepare));
            world.b.fail(Step::Prepare, || BranchError::conflict("another"));
        },
        handle: |_, _| {},
        outcome: Outcome::Aborted,
        retryable: true,
        calls: &VOTED,
    },
];

#[tokio::test]
async fn every_response_says_how_its_transaction_ended() {
    for Way { name, prepare, handle, outcome, retryable, calls } in WAYS {
        let world = World::new().await;
        prepare(&world);
        let id = Arc::new(Mutex::new(None));
        let layer = TransactionLayer::new(world.manager.clone()).try_commit_veto({
            let journal = world.journal.clone();
            move |context| {
                journal.add("veto asked");
                match context.headers().get("x-veto") {
                    Some(value) if value == "fail" => Err("the veto's own"),
                    veto => Ok(veto.is_some()),
                }
            }
        });
        let seen = id.clone();
        let service = layer.layer(service_fn(handler(&world, move |tx: Tx| {
            *seen.lock().unwrap() = Some(tx.id());
            let mut response = answer(200).unwrap();
            handle(&tx, &mut response);
            async move { Answer::Ok(response) }
        })));
        let response = service.oneshot(post("/orders")).await.unwrap();
        let id = id.lock().unwrap().unwrap();
        let ended = response.extensions().get::<Ended>().expect(name);
        assert_eq!((ended.id, ended.outcome, ended.retryable), (id, outcome, retryable), "{name}");
        assert_eq!(response.headers()["unanimous-transaction"], id.to_string(), "{name}");
        assert_eq!(world.a.calls(), calls, "{name}");
        assert_eq!(world.journal.of("end"), [outcome.to_string()], "{name}");
        let asked = world.journal.entries().contains(&"veto asked".to_owned());
        assert_eq!(asked, !(name == "doomed" || name.starts_with("marked")), "{name}: whether the veto was asked");
    }
}

#[tokio::test]
async fn a_response_of_an_unknown_outcome_says_so() {
    let world = World::with(Capability::OnePhase).await;
    world.b.fail(Step::CommitOnePhase, || BranchError::lost("connection closed"));
    let b = world.b.clone();
    let service = TransactionLayer::new(world.manager.clone()).layer(service_fn(move |request: Request<String>| {
        let b = b.clone();
        async move {
            let tx = transaction(request.extensions()).unwrap();
            tx.join(&b).await.unwrap();
            // Its wish is not heard: the outcome is what counts.
            answer(200)
        }
    }));
    let response = service.oneshot(post("/orders")).await.unwrap();
    let ended = response.extensions().get::<Ended>().unwrap();
    assert_eq!((ended.outcome, ended.retryable), (Outcome::Unknown, false));
    assert_eq!(response.headers()["unanimous-transaction"], ended.id.to_string());
}

#[tokio::test]
async fn a_request_that_begins_nothing_says_nothing() {
    let world = World::new().await;
    let service =
        TransactionLayer::new(world.manager.clone()).layer(service_fn(async |_: Request<String>| answer(404)));
    let response = service.oneshot(post("/missing")).await.unwrap();
    assert!(response.extensions().get::<Ended>().is_none());
    assert!(response.headers().is_empty(), "{:?}", response.headers());
}

#[tokio::test]
async fn the_header_can_be_renamed_left_out_and_is_kept_where_it_is() {
    const OWN: HeaderName = HeaderName::from_static("x-transaction");
    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone());
    let run = async |layer: TransactionLayer, given: Option<&'static str>| {
        let service = layer.layer(service_fn(handler(&world, move |_| async move {
            let mut response = answer(200)?;
            if let Some(given) = given {
                response.headers_mut().insert("unanimous-transaction", HeaderValue::from_static(given));
            }
            Answer::Ok(response)
        })));
        let response = service.oneshot(post("/orders")).await.unwrap();
        let said = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let id = response.extensions().get::<Ended>().unwrap().id.to_string();
        (id, said("unanimous-transaction"), said("x-transaction"))
    };
    let (id, default, own) = run(layer.clone(), None).await;
    assert_eq!((default, own), (Some(id), None));
    let (id, default, own) = run(layer.clone().transaction_header(OWN), None).await;
    assert_eq!((default, own), (None, Some(id)));
    let (_, default, own) = run(layer.clone().no_transaction_header(), None).await;
    assert_eq!((default, own), (None, None));
    let (_, default, own) = run(layer, Some("an earlier one")).await;
    assert_eq!((default, own), (Some("an earlier one".to_owned()), None));
}

/// An unknown outcome's document names its transaction, also where no header does.
#[tokio::test]
async fn without_the_header_an_unknown_outcome_is_named_in_its_document_only() {
    let world = World::with(Capability::OnePhase).await;
    world.b.fail(Step::CommitOnePhase, || BranchError::lost("connection closed"));
    let b = world.b.clone();
    let layer = TransactionLayer::new(world.manager.clone()).no_transaction_header();
    let service = layer.layer(service_fn(move |request: Request<String>| {
        let b = b.clone();
        async move {
            let tx = transaction(request.extensions()).unwrap();
            tx.join(&b).await.unwrap();
            answer(200)
        }
    }));
    let response = service.oneshot(post("/orders")).await.unwrap();
    assert!(response.headers().get("unanimous-transaction").is_none());
    let id = response.extensions().get::<Ended>().unwrap().id;
    assert!(response.body().contains(&format!(r#""transaction":"{id}""#)), "{}", response.body());
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// What a transaction says of itself after a request with these headers.
async fn said(layer: impl FnOnce(TransactionLayer) -> TransactionLayer, traceparent: Option<&str>) -> (String, String) {
    let manager = TransactionManager::builder(MemoryLog::new()).build().await.unwrap();
    let service = layer(TransactionLayer::new(manager)).layer(service_fn(async |request: Request<String>| {
        let tx = transaction(request.extensions()).unwrap();
        Answer::Ok(Response::new(format!("{}|{:?}", tx.description(), tx.extended_info())))
    }));
    let mut request = post("/orders/7?token=secret");
    if let Some(traceparent) = traceparent {
        request.headers_mut().insert("traceparent", traceparent.parse().unwrap());
    }
    let said = service.oneshot(request).await.unwrap().into_body();
    let (note, info) = said.split_once('|').unwrap();
    (note.to_owned(), info.to_owned())
}

#[tokio::test]
async fn method_route_and_trace_are_noted() {
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    assert_eq!(
        said(|layer| layer, None).await,
        ("POST /orders/7".to_owned(), r#"{"method": "POST", "route": "/orders/7"}"#.to_owned())
    );
    let (note, info) = said(|layer| layer.route(|_| Some("/orders/{id}".to_owned())), Some(&parent)).await;
    assert_eq!(note, format!("POST /orders/{{id}}\ntrace {TRACE}"));
    assert_eq!(info, format!(r#"{{"method": "POST", "route": "/orders/{{id}}", "trace_id": "{TRACE}"}}"#));
    // A route that is not found, as in a 404, leaves the path.
    assert_eq!(said(|layer| layer.route(|_| None), None).await.0, "POST /orders/7");
    // An own hook counts alone.
    let own = said(|layer| layer.trace_id(|parts| Some(parts.uri.path().len().to_string())), Some(&parent)).await;
    assert_eq!(own.0, "POST /orders/7\ntrace 9");
    assert_eq!(said(|layer| layer.trace_id(|_| None), Some(&parent)).await.0, "POST /orders/7");
    // What is not well-formed leads nowhere.
    assert_eq!(said(|layer| layer, Some("00-xyz")).await.0, "POST /orders/7");
}
