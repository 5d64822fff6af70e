//! The page: one embedded template, and tables that are put into it. Works without JavaScript.
//!
//! Whatever came from a user goes through [`escaped`]. Must not know HTTP, stores or the manager.

use std::fmt::Write as _;

use unanimous::Outcome;

use super::history::Ended;
use super::order::{Entered, Fail, MAX_QUANTITY, MAX_TEXT, Order};

const TEMPLATE: &str = include_str!("page.html");

/// What the browser is told on top of the page about what it has just asked for.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    pub(crate) transaction: Option<String>,
    /// The order whose receipt there is to see.
    pub(crate) receipt: Option<i64>,
}

/// What became of what was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Ended(Outcome),
    /// The order was refused as it stands.
    Refused,
    NotFound,
}

/// What the page shows of the desk.
#[derive(Debug)]
pub(crate) struct Desk<'a> {
    /// What each order is written to.
    pub(crate) stores: &'a str,
    /// What of it is where.
    pub(crate) parts: &'a str,
    /// The command line that compares the stores.
    pub(crate) check: &'a str,
    /// None: they can't be read now.
    pub(crate) orders: Option<&'a [Order]>,
    pub(crate) transactions: &'a [Ended],
}

/// The whole page.
pub(crate) fn page(told: Option<&Told>, entered: &Entered, desk: &Desk<'_>) -> String {
    let told = told.map(told_html).unwrap_or_default();
    let (max_text, max_quantity) = (MAX_TEXT.to_string(), MAX_QUANTITY.to_string());
    filled(
        TEMPLATE,
        &[
            ("stores", desk.stores),
            ("parts", desk.parts),
            ("told", &told),
            ("max_text", &max_text),
            ("max_quantity", &max_quantity),
            ("customer", &escaped(&entered.customer)),
            ("item", &escaped(&entered.item)),
            ("quantity", &escaped(entered.quantity.as_deref().unwrap_or("1"))),
            ("fails", &fails_html(&entered.fail)),
            ("check", &escaped(desk.check)),
            ("orders", &orders_html(desk.orders)),
            ("transactions", &transactions_html(desk.transactions)),
        ],
    )
}

fn told_html(told: &Told) -> String {
    let (class, badge) = match told.kind {
        Kind::Ended(outcome) => outcome_words(outcome),
        Kind::Refused => ("aborted", "not accepted"),
        Kind::NotFound => ("aborted", "not found"),
    };
    let mut html = format!(
        r#"<section class="card told {class}" role="status"><span class="badge">{badge}</span> {}"#,
        escaped(&told.message)
    );
    if let Some(id) = told.receipt {
        let _ = write!(html, r#" <a href="/receipts/{id}">Its receipt</a>"#);
    }
    if let Some(transaction) = &told.transaction {
        let _ = write!(html, r#"<p class="soft">Transaction <code>{}</code></p>"#, escaped(transaction));
    }
    html + "</section>"
}

fn fails_html(entered: &str) -> String {
    let option = |(_, name, what): &(Fail, &str, &str)| {
        let selected = if *name == entered { " selected" } else { "" };
        format!(r#"<option value="{}"{selected}>abort it: {}</option>"#, escaped(name), escaped(what))
    };
    Fail::ALL.iter().map(option).collect::<Vec<_>>().join("\n")
}

fn orders_html(orders: Option<&[Order]>) -> String {
    let Some(orders) = orders else {
        return r#"<p class="soft">Their database can't be used now; orders are refused until it can.</p>"#.into();
    };
    if orders.is_empty() {
        return r#"<p class="soft">None yet.</p>"#.into();
    }
    let mut html = String::from(
        r#"<table><thead><tr><th class="number">No.</th><th>Customer</th><th>Item</th><th class="number">Quantity</th><th>Placed (UTC)</th><th>Receipt</th><th>Transaction</th></tr></thead><tbody>"#,
    );
    for order in orders {
        let id = order.id;
        let _ = write!(
            html,
            r#"<tr><td class="number">{id}</td><td class="text">{}</td><td class="text">{}</td><td class="number">{}</td><td class="nowrap">{}</td><td class="nowrap"><a href="/receipts/{id}">{id}.json</a></td><td>{}</td></tr>"#,
            escaped(&order.customer),
            escaped(&order.item),
            order.quantity,
            escaped(&without_milliseconds(&order.placed_at)),
            transaction_html(&order.transaction),
        );
    }
    html + "</tbody></table>"
}

fn transactions_html(transactions: &[Ended]) -> String {
    if transactions.is_empty() {
        return r#"<p class="soft">None since this program started.</p>"#.into();
    }
    let mut html = String::from(
        r#"<table><thead><tr><th>Transaction</th><th>Outcome</th><th>Branches, and how each ended</th><th>Why</th><th>Began (UTC)</th><th class="number">Took</th></tr></thead><tbody>"#,
    );
    for ended in transactions {
        let (class, word) = outcome_words(ended.outcome);
        let branch =
            |(store, end): &(String, &str)| format!("<li><strong>{}</strong>: {}</li>", escaped(store), escaped(end));
        let _ = write!(
            html,
            r#"<tr><td>{}<br><span class="soft">{}</span></td><td class="{class}"><span class="badge">{word}</span></td><td><ul class="branches">{}</ul></td><td class="text">{}</td><td class="nowrap">{}</td><td class="number nowrap">{} ms</td></tr>"#,
            transaction_html(&ended.id),
            escaped(&[&*ended.note, &*ended.user].join("\n").trim_end().replace('\n', ", ")),
            ended.branches.iter().map(branch).collect::<String>(),
            escaped(ended.cause.as_deref().unwrap_or_default()),
            time_of_day(ended.began_at),
            ended.took.as_millis(),
        );
    }
    html + "</tbody></table>"
}

/// A transaction's id without the log's, which is the same in all of them; whole where the pointer rests, and linked to its outcome.
fn transaction_html(id: &str) -> String {
    let short = id.split_once('.').map_or(id, |(_, rest)| rest);
    let id = escaped(id);
    format!(r#"<a href="/transactions/{id}"><code class="nowrap" title="{id}">{}</code></a>"#, escaped(short))
}

fn outcome_words(outcome: Outcome) -> (&'static str, &'static str) {
    match outcome {
        Outcome::Committed => ("committed", "committed"),
        Outcome::Aborted => ("aborted", "aborted"),
        Outcome::Unknown => ("unknown", "unknown"),
    }
}

fn without_milliseconds(time: &str) -> String {
    time.split('.').next().unwrap_or(time).replace('T', " ")
}

fn time_of_day(micros: u64) -> String {
    let seconds = micros / 1_000_000 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Text as HTML shows it, within elements and within quoted attributes.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            other => html.push(other),
        }
    }
    html
}

/// Puts each value where its `{{name}}` is. What is put in is not looked at again.
fn filled(template: &str, values: &[(&str, &str)]) -> String {
    let mut html = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").expect("each {{ of the template has its }}");
        let value = values.iter().find(|(known, _)| *known == name);
        html.push_str(before);
        html.push_str(value.expect("each name in the template has a value").1);
        rest = after;
    }
    html + rest
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NASTY: &str = r#"<script>alert("x")</script>&'{{orders}}"#;
    const HARMLESS: &str = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#39;{{orders}}";

    fn desk<'a>(orders: Option<&'a [Order]>, transactions: &'a [Ended], check: &'a str) -> Desk<'a> {
        Desk { stores: "two stores", parts: "all or none", check, orders, transactions }
    }

    #[test]
    fn orders_that_can_not_be_read_are_not_none() {
        let html = page(None, &Entered::default(), &desk(None, &[], "check"));
        assert!(html.contains("can't be used now") && !html.contains("None yet."), "{html}");
    }

    #[test]
    fn an_empty_desk() {
        let html = page(None, &Entered::default(), &desk(Some(&[]), &[], "unanimous demo check"));
        assert!(html.contains("None yet.") && html.contains("None since this program started."));
        assert!(!html.contains("{{") && !html.contains("}}"), "every place of the template is filled");
        for (_, name, _) in Fail::ALL {
            assert!(html.contains(&format!(r#"<option value="{name}">"#)), "{name}");
        }
    }

    #[test]
    fn whatever_comes_from_a_user_is_escaped() {
        let order = Order {
            id: 7,
            customer: NASTY.into(),
            item: NASTY.into(),
            quantity: 3,
            transaction: NASTY.into(),
            placed_at: NASTY.into(),
        };
        let ended = Ended {
            id: NASTY.into(),
            outcome: Outcome::Aborted,
            cause: Some(NASTY.into()),
            note: NASTY.into(),
            user: NASTY.into(),
            branches: vec![(NASTY.into(), "rolled back")],
            began_at: 3_723_000_000,
            took: Duration::from_millis(12),
        };
        let told = Told {
            kind: Kind::Ended(Outcome::Committed),
            message: NASTY.into(),
            transaction: Some(NASTY.into()),
            receipt: Some(7),
        };
        let entered =
            Entered { customer: NASTY.into(), item: NASTY.into(), quantity: Some(NASTY.into()), fail: "doom".into() };
        let html = page(Some(&told), &entered, &desk(Some(&[order]), &[ended], NASTY));
        assert!(!html.contains("<script"), "{html}");
        // Customer, item, placed; the order's and the ended transaction's id three times each; cause, note, user, branch; message, transaction;
        // what was entered in three fields; the command line.
        assert_eq!(html.matches(HARMLESS).count(), 19, "{html}");
        assert_eq!(html.matches(" selected").count(), 1, "{html}");
        assert!(html.contains(r#"<option value="doom" selected>"#), "{html}");
        for part in ["01:02:03", "12 ms", "rolled back", r#"href="/receipts/7""#, r#"class="card told committed""#] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
    }
}
