//! repoze.tm2's default commit veto, row by row, and what the layer makes of a veto's answer.

#![allow(clippy::unwrap_used)]

use http::{Method, Request, Response, Uri};
use tower::{Layer, ServiceExt, service_fn};
use unanimous::Outcome;
use unanimous::http::{TransactionLayer, VetoContext, default_commit_veto};

use crate::http_support::{ABORTED, Answer, COMMITTED, Remark, World, answer, handler, post};

#[track_caller]
fn assert_veto(status: u16, headers: &[(&str, &str)], vetoed: bool) {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let response = response.body(()).unwrap();
    let (method, uri) = (Method::GET, Uri::from_static("/"));
    let context = VetoContext::new(&method, &uri, &response);
    assert_eq!(default_commit_veto(&context), vetoed, "{status} with {headers:?}");
}

#[test]
fn default_commit_veto_follows_the_ancestor() {
    // The status alone: its first digit.
    for status in [100, 101, 199, 200, 201, 204, 299, 301, 302, 304, 399, 600, 999] {
        assert_veto(status, &[], false);
    }
    for status in [400, 401, 404, 405, 409, 418, 499, 500, 502, 503, 599] {
        assert_veto(status, &[], true);
    }
    // X-Tm goes before the status, in any case of name and value.
    for status in [200, 302, 404, 500] {
        assert_veto(status, &[("x-tm", "commit")], false);
        assert_veto(status, &[("X-Tm", "commit")], false);
        assert_veto(status, &[("X-TM", "COMMIT")], false);
        assert_veto(status, &[("x-tm", "Commit")], false);
        assert_veto(status, &[("X-Tm", "abort")], true);
        assert_veto(status, &[("X-Tm", "")], true);
        assert_veto(status, &[("X-Tm", "true")], true);
        assert_veto(status, &[("X-Tm", "commit please")], true);
    }
    // Any value of X-Tm-Abort, with any status.
    for value in ["1", "true", "", "no", "commit"] {
        assert_veto(200, &[("X-Tm-Abort", value)], true);
        assert_veto(500, &[("x-tm-abort", value)], true);
    }
    // X-Tm goes before X-Tm-Abort, wherever it stands.
    assert_veto(200, &[("X-Tm-Abort", "1"), ("X-Tm", "commit")], false);
    assert_veto(200, &[("X-Tm", "commit"), ("X-Tm-Abort", "1")], false);
    assert_veto(500, &[("X-Tm-Abort", "1"), ("X-Tm", "commit")], false);
    assert_veto(200, &[("X-Tm-Abort", "1"), ("X-Tm", "abort")], true);
    // The first of several X-Tm decides.
    assert_veto(500, &[("X-Tm", "commit"), ("X-Tm", "abort")], false);
    assert_veto(200, &[("X-Tm", "abort"), ("X-Tm", "commit")], true);
    // Others don't count.
    assert_veto(200, &[("X-Tm-Commit", "abort"), ("Tm", "abort"), ("Content-Type", "text/plain")], false);
}

#[test]
fn a_value_that_is_no_text_is_any_other_value() {
    let mut response = Response::new(());
    response.headers_mut().insert("x-tm", http::HeaderValue::from_bytes(b"\xff").unwrap());
    let (method, uri) = (Method::GET, Uri::from_static("/"));
    assert!(default_commit_veto(&VetoContext::new(&method, &uri, &response)));
}

#[tokio::test]
async fn without_a_veto_an_error_status_commits() {
    let world = World::new().await;
    let service =
        TransactionLayer::new(world.manager.clone()).layer(service_fn(handler(&world, async |_| answer(500))));
    let response = service.oneshot(post("/orders")).await.unwrap();
    assert_eq!((response.status().as_u16(), response.body().as_str()), (500, "the handler's own"));
    world.assert_ended(&COMMITTED, Outcome::Committed);
}

#[tokio::test]
async fn the_default_veto_aborts_and_the_handlers_answer_goes_out() {
    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone()).commit_veto(default_commit_veto);
    let service = layer.layer(service_fn(handler(&world, async |_| answer(404))));
    let response = service.oneshot(post("/orders")).await.unwrap();
    world.journal.add("answer");
    assert_eq!((response.status().as_u16(), response.body().as_str()), (404, "the handler's own"));
    world.assert_ended(&ABORTED, Outcome::Aborted);
    world.assert_cause("the commit veto said so");
    world.journal.assert_before("a rollback", "answer");
    world.journal.assert_before("b rollback", "answer");
    world.journal.assert_before("end aborted", "answer");
}

#[tokio::test]
async fn a_veto_sees_the_request_and_the_responses_head() {
    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone()).commit_veto({
        let journal = world.journal.clone();
        move |context| {
            journal.add(format_args!(
                "veto {} {} {} {:?} {:?}",
                context.method(),
                context.uri(),
                context.status(),
                context.headers(),
                context.extensions().get::<&str>()
            ));
            false
        }
    });
    let service = layer.layer(service_fn(handler(&world, async |_| -> Answer {
        let response = Response::builder().status(201).header("x-kind", "order").extension("only for the veto");
        Ok(response.body(String::new()).unwrap())
    })));
    service.oneshot(post("/orders?from=shop")).await.unwrap();
    assert_eq!(
        world.journal.of("veto"),
        [r#"POST /orders?from=shop 201 Created {"x-kind": "order"} Some("only for the veto")"#]
    );
    world.journal.assert_before("worked", "a flush");
    world.assert_ended(&COMMITTED, Outcome::Committed);
    let veto = world.journal.entries().into_iter().find(|entry| entry.starts_with("veto")).unwrap();
    world.journal.assert_before("worked", &veto);
    world.journal.assert_before(&veto, "a flush");
    world.journal.assert_before(&veto, "b flush");
}

#[tokio::test]
async fn a_veto_that_panics_aborts_and_the_panic_goes_on() {
    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone()).commit_veto(|_| panic!("the veto fell over"));
    let service = layer.layer(service_fn(handler(&world, async |_| answer(200))));
    let out = Remark(world.journal.clone(), "panic out");
    let request = tokio::spawn(async move {
        let _out = out;
        service.oneshot(post("/orders")).await
    });
    let panic = request.await.unwrap_err().into_panic();
    assert_eq!(*panic.downcast::<&str>().unwrap(), "the veto fell over");
    world.assert_ended(&ABORTED, Outcome::Aborted);
    world.journal.assert_before("a rollback", "panic out");
    world.journal.assert_before("end aborted", "panic out");
}

#[tokio::test]
async fn a_veto_that_fails_aborts_and_the_answer_is_a_failed_commits() {
    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone()).try_commit_veto(|_| Err("the rules are not readable"));
    let service = layer.layer(service_fn(handler(&world, async |_| answer(200))));
    let response = service.oneshot(post("/orders")).await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(!response.body().contains("readable"), "internals in {}", response.body());
    world.assert_ended(&ABORTED, Outcome::Aborted);
    world.assert_cause("the commit veto failed");
}

#[tokio::test]
async fn a_veto_is_asked_only_where_there_is_something_to_veto() {
    let world = World::new().await;
    let layer = TransactionLayer::new(world.manager.clone()).commit_veto({
        let journal = world.journal.clone();
        move |context| {
            journal.add(format_args!("veto {}", context.uri()));
            true
        }
    });

    let service = layer.layer(service_fn(async |_: Request<String>| answer(200)));
    service.oneshot(post("/nothing-begun")).await.unwrap();

    let service = layer.layer(service_fn(handler(&world, async |tx| {
        tx.doom();
        answer(200)
    })));
    service.oneshot(post("/doomed")).await.unwrap();

    let service = layer.layer(service_fn(handler(&world, async |_| -> Answer { Err("no answer".into()) })));
    service.oneshot(post("/failed")).await.unwrap_err();

    assert_eq!(world.journal.of("veto"), Vec::<String>::new());
    assert_eq!(world.journal.of("end"), ["aborted", "aborted"]);
}
