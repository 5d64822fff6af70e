//! An order: as it is asked for, checked field by field, and as it is stored.
//!
//! Parsing is the only way to a [`NewOrder`], so that whatever writes one need not check again.
//! Must not know HTTP's types, stores or transactions.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// The longest customer or item, in characters.
pub(crate) const MAX_TEXT: usize = 200;
/// The largest quantity.
pub(crate) const MAX_QUANTITY: u32 = 1_000_000;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewOrder {
    /// Trimmed; 1 to [`MAX_TEXT`] characters, none of them a control character, of the direction of writing neither.
    pub(crate) customer: String,
    /// As the customer.
    pub(crate) item: String,
    /// 1 to [`MAX_QUANTITY`].
    pub(crate) quantity: u32,
    /// How it shall fail, if it shall.
    pub(crate) fail: Option<Fail>,
}

/// The ways to abort an order on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fail {
    /// The handler answers with an error.
    Error,
    /// The response carries a veto.
    Veto,
    /// The handler panics.
    Panic,
    /// The handler dooms the transaction.
    Doom,
    /// A store votes no.
    Vote,
}

impl Fail {
    /// Each with its name in requests, and what it shows.
    pub(crate) const ALL: [(Self, &'static str, &'static str); 5] = [
        (Self::Error, "error", "the handler fails after it has written"),
        (Self::Veto, "veto", "the response carries X-Tm: abort"),
        (Self::Panic, "panic", "the handler panics"),
        (Self::Doom, "doom", "the handler dooms the transaction"),
        (Self::Vote, "vote", "the receipts vote no at commit"),
    ];

    /// As requests name it.
    pub(crate) fn name(self) -> &'static str {
        let known = Self::ALL.iter().find(|(fail, ..)| *fail == self);
        known.expect("each way is in the list of all").1
    }
}

/// An order as each store keeps it: a row, and a receipt with the same content; in PostgreSQL an invoice too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: i64,
    pub(crate) customer: String,
    pub(crate) item: String,
    pub(crate) quantity: u32,
    /// The transaction that wrote them.
    pub(crate) transaction: String,
    /// UTC, ISO 8601.
    pub(crate) placed_at: String,
}

impl Order {
    /// The fields in which `other`, this order's `what`, differs from this row, in words.
    pub(crate) fn differences(&self, what: &str, other: &Self) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let fields = |order: &Self| {
            [
                ("id", order.id.to_string()),
                ("customer", quoted(&order.customer)),
                ("item", quoted(&order.item)),
                ("quantity", order.quantity.to_string()),
                ("transaction", quoted(&order.transaction)),
                ("placed_at", quoted(&order.placed_at)),
            ]
        };
        let pairs = fields(self).into_iter().zip(fields(other));
        let different = pairs.filter(|((_, row), (_, other))| row != other);
        let told =
            different.map(|((name, row), (_, other))| format!("{name}: {row} in the row, {other} in the {what}"));
        told.collect::<Vec<_>>().join("; ")
    }
}

/// Why something is not an order. Nothing of it was written.
#[derive(Debug)]
pub(crate) enum Invalid {
    /// Not JSON, or no object.
    NotJson(serde_json::Error),
    /// Not UTF-8.
    NotForm,
    /// JSON that was sent as a form.
    JsonAsForm,
    /// A field that an order has is not there.
    Missing(&'static str),
    /// A field is there twice.
    Twice(String),
    /// A field that no order has.
    UnknownField(String),
    /// A field without content.
    Empty(&'static str),
    /// A field is not what it must be.
    Field { name: &'static str, must: String, is: String },
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Invalid::NotJson(error) => write!(f, "the body is not a JSON object: {error}"),
            Invalid::NotForm => f.write_str("the body is not a form: its values are not UTF-8"),
            Invalid::JsonAsForm => f.write_str(
                "the body looks like JSON but was sent as a form; send the header `content-type: application/json`",
            ),
            Invalid::Missing(name) => write!(f, "{name}: is missing"),
            Invalid::Empty(name) => write!(f, "{name}: must not be empty"),
            Invalid::Twice(name) => write!(f, "{name}: is there twice"),
            Invalid::UnknownField(name) => {
                write!(f, "{name}: is not a field of an order; these are: customer, item, quantity, fail")
            }
            Invalid::Field { name, must, is } => write!(f, "{name}: must be {must}, not {is}"),
        }
    }
}

impl Invalid {
    /// Whether the body could not be read at all; else it could, and its content is wrong.
    pub(crate) fn is_syntax(&self) -> bool {
        matches!(self, Invalid::NotJson(_) | Invalid::NotForm | Invalid::JsonAsForm)
    }
}

impl NewOrder {
    /// From a JSON object: text is text, the quantity a number.
    pub(crate) fn from_json(body: &[u8]) -> Result<Self, Invalid> {
        let Fields(fields) = serde_json::from_slice(body).map_err(Invalid::NotJson)?;
        let mut parts = Parts::default();
        for (name, value) in fields {
            // `null` is what is not there.
            if !value.is_null() || !Parts::knows(&name) {
                parts.add(name, value)?;
            }
        }
        parts.order()
    }

    /// From a form: every value is text.
    pub(crate) fn from_form(body: &[u8]) -> Result<Self, Invalid> {
        if body.trim_ascii_start().first() == Some(&b'{') {
            return Err(Invalid::JsonAsForm);
        }
        let mut parts = Parts::default();
        for (name, value) in form_urlencoded::parse(body).into_owned() {
            // The URL standard puts U+FFFD where bytes are no UTF-8. What is stored is what was sent, or nothing.
            if value.contains(char::REPLACEMENT_CHARACTER) {
                return Err(Invalid::NotForm);
            }
            if name == "quantity" {
                let digits = value.trim();
                let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().ok());
                parts.add(name, number.flatten().map_or(Value::String(value), Value::from))?;
            } else {
                parts.add(name, Value::String(value))?;
            }
        }
        parts.order()
    }
}

/// What was entered in the page's form, right or wrong, so that it can be shown again. Nothing of it is checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entered {
    pub(crate) customer: String,
    pub(crate) item: String,
    /// None: nothing was entered yet.
    pub(crate) quantity: Option<String>,
    pub(crate) fail: String,
}

impl Entered {
    /// The fields of a form, the first of each; of anything else, nothing.
    pub(crate) fn from_form(body: &[u8]) -> Self {
        let field = |name: &str| form_urlencoded::parse(body).find(|(known, _)| known == name);
        let text = |name: &str| field(name).map(|(_, value)| value.into_owned());
        Self {
            customer: text("customer").unwrap_or_default(),
            item: text("item").unwrap_or_default(),
            quantity: text("quantity"),
            fail: text("fail").unwrap_or_default(),
        }
    }
}

/// The fields that were found so far.
#[derive(Default)]
struct Parts {
    customer: Option<Value>,
    item: Option<Value>,
    quantity: Option<Value>,
    fail: Option<Value>,
}

impl Parts {
    fn knows(name: &str) -> bool {
        Self::default().place(name).is_some()
    }

    fn place(&mut self, name: &str) -> Option<&mut Option<Value>> {
        match name {
            "customer" => Some(&mut self.customer),
            "item" => Some(&mut self.item),
            "quantity" => Some(&mut self.quantity),
            "fail" => Some(&mut self.fail),
            _ => None,
        }
    }

    fn add(&mut self, name: String, value: Value) -> Result<(), Invalid> {
        match self.place(&name) {
            None => Err(Invalid::UnknownField(shortened(&name))),
            Some(Some(_)) => Err(Invalid::Twice(name)),
            Some(place) => {
                *place = Some(value);
                Ok(())
            }
        }
    }

    fn order(self) -> Result<NewOrder, Invalid> {
        Ok(NewOrder {
            customer: text("customer", self.customer)?,
            item: text("item", self.item)?,
            quantity: quantity(self.quantity)?,
            fail: fail(self.fail)?,
        })
    }
}

fn text(name: &'static str, value: Option<Value>) -> Result<String, Invalid> {
    let wrong = |must: &str, is: String| Invalid::Field { name, must: must.into(), is };
    let text = match value.ok_or(Invalid::Missing(name))? {
        Value::String(text) => text,
        other => return Err(wrong("text", kind_of(&other).into())),
    };
    let text = text.trim();
    let length = text.chars().count();
    if text.is_empty() {
        Err(Invalid::Empty(name))
    } else if length > MAX_TEXT {
        Err(wrong(&format!("at most {MAX_TEXT} characters long"), format!("{length}")))
    } else if text.chars().any(|c| c.is_control() || turns_text(c)) {
        Err(wrong("text without control characters", format!("{:?}", shortened(text))))
    } else {
        Ok(text.to_owned())
    }
}

/// Whether a character is there only to change the direction of writing: it can make text look like another one (Unicode's `Bidi_Control`).
fn turns_text(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn quantity(value: Option<Value>) -> Result<u32, Invalid> {
    let value = value.ok_or(Invalid::Missing("quantity"))?;
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number.filter(|number| (1..=MAX_QUANTITY).contains(number)).ok_or_else(|| Invalid::Field {
        name: "quantity",
        must: format!("a whole number from 1 to {MAX_QUANTITY}"),
        is: shortened(&value.to_string()),
    })
}

/// Nothing, or empty text (a form's first choice), is none.
fn fail(value: Option<Value>) -> Result<Option<Fail>, Invalid> {
    let wrong = |is: String| {
        let known: Vec<&str> = Fail::ALL.iter().map(|(_, name, _)| *name).collect();
        Invalid::Field { name: "fail", must: format!("one of {}", known.join(", ")), is }
    };
    match value {
        None => Ok(None),
        Some(Value::String(name)) if name.is_empty() => Ok(None),
        Some(Value::String(name)) => {
            let known = Fail::ALL.iter().find(|(_, known, _)| *known == name);
            known.map(|(fail, ..)| Some(*fail)).ok_or_else(|| wrong(format!("{:?}", shortened(&name))))
        }
        Some(other) => Err(wrong(shortened(&other.to_string()))),
    }
}

/// What a message quotes of something that a client sent.
fn shortened(text: &str) -> String {
    let mut characters = text.chars();
    let start: String = characters.by_ref().take(60).collect();
    if characters.next().is_some() { format!("{start}...") } else { start }
}

/// A JSON object with its fields in order, those that are there twice included: serde_json's own map keeps the last one silently.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with customer, item and quantity")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(body: &str) -> Result<NewOrder, String> {
        NewOrder::from_json(body.as_bytes()).map_err(|invalid| invalid.to_string())
    }

    fn form_of(body: &str) -> Result<NewOrder, String> {
        NewOrder::from_form(body.as_bytes()).map_err(|invalid| invalid.to_string())
    }

    fn order(customer: &str, item: &str, quantity: u32, fail: Option<Fail>) -> NewOrder {
        NewOrder { customer: customer.into(), item: item.into(), quantity, fail }
    }

    #[test]
    fn good_orders() {
        assert_eq!(json(r#"{"customer": " Ada ", "item": "tea", "quantity": 3}"#), Ok(order("Ada", "tea", 3, None)));
        assert_eq!(
            json(r#"{"customer": "Ada", "item": "tea", "quantity": 1000000, "fail": "doom"}"#),
            Ok(order("Ada", "tea", 1_000_000, Some(Fail::Doom)))
        );
        assert_eq!(
            json(r#"{"customer": "A", "item": "t", "quantity": 1, "fail": null}"#),
            Ok(order("A", "t", 1, None))
        );
        assert_eq!(
            form_of("customer=Ada+L%C3%B6w&item=50%25+tea&quantity=+3+&fail="),
            Ok(order("Ada Löw", "50% tea", 3, None))
        );
        let longest = "ü".repeat(MAX_TEXT);
        assert!(json(&format!(r#"{{"customer": "{longest}", "item": "t", "quantity": 1}}"#)).is_ok());
    }

    #[test]
    fn wrong_json_says_what_is_wrong() {
        let long = "x".repeat(MAX_TEXT + 1);
        for (body, message) in [
            ("", "the body is not a JSON object: EOF while parsing a value at line 1 column 0"),
            (
                "[]",
                "the body is not a JSON object: invalid type: sequence, expected an object with customer, item and quantity at line 1 column 0",
            ),
            (r#"{"customer": "A", "quantity": 1}"#, "item: is missing"),
            (r#"{"customer": "A", "item": null, "quantity": 1}"#, "item: is missing"),
            (r#"{"customer": " ", "item": "t", "quantity": 1}"#, "customer: must not be empty"),
            (r#"{"customer": 7, "item": "t", "quantity": 1}"#, "customer: must be text, not a number"),
            (r#"{"customer": ["A"], "item": "t", "quantity": 1}"#, "customer: must be text, not an array"),
            (
                r#"{"customer": "A\u202e", "item": "t", "quantity": 1}"#,
                r#"customer: must be text without control characters, not "A\u{202e}""#,
            ),
            (
                r#"{"customer": "A", "item": "\u2066t", "quantity": 1}"#,
                r#"item: must be text without control characters, not "\u{2066}t""#,
            ),
            (
                r#"{"customer": "A", "item": "t\u0000", "quantity": 1}"#,
                r#"item: must be text without control characters, not "t\0""#,
            ),
            (
                &format!(r#"{{"customer": "A", "item": "{long}", "quantity": 1}}"#),
                "item: must be at most 200 characters long, not 201",
            ),
            (r#"{"customer": "A", "item": "t"}"#, "quantity: is missing"),
            (
                r#"{"customer": "A", "item": "t", "quantity": 0}"#,
                "quantity: must be a whole number from 1 to 1000000, not 0",
            ),
            (
                r#"{"customer": "A", "item": "t", "quantity": 1000001}"#,
                "quantity: must be a whole number from 1 to 1000000, not 1000001",
            ),
            (
                r#"{"customer": "A", "item": "t", "quantity": 4294967297}"#,
                "quantity: must be a whole number from 1 to 1000000, not 4294967297",
            ),
            (
                r#"{"customer": "A", "item": "t", "quantity": -1}"#,
                "quantity: must be a whole number from 1 to 1000000, not -1",
            ),
            (
                r#"{"customer": "A", "item": "t", "quantity": 1.5}"#,
                "quantity: must be a whole number from 1 to 1000000, not 1.5",
            ),
            (
                r#"{"customer": "A", "item": "t", "quantity": "3"}"#,
                r#"quantity: must be a whole number from 1 to 1000000, not "3""#,
            ),
            (
                r#"{"customer": "A", "item": "t", "quantity": 1, "fail": "x"}"#,
                r#"fail: must be one of error, veto, panic, doom, vote, not "x""#,
            ),
            (
                r#"{"customer": "A", "item": "t", "quantity": 1, "fail": 1}"#,
                "fail: must be one of error, veto, panic, doom, vote, not 1",
            ),
            (r#"{"customer": "A", "customer": "B"}"#, "customer: is there twice"),
            (r#"{"customr": "A"}"#, "customr: is not a field of an order; these are: customer, item, quantity, fail"),
        ] {
            assert_eq!(json(body), Err(message.to_owned()), "{body}");
        }
    }

    #[test]
    fn wrong_forms_say_what_is_wrong() {
        for (body, message) in [
            ("", "customer: is missing"),
            ("customer=A&item=t&quantity=three", r#"quantity: must be a whole number from 1 to 1000000, not "three""#),
            ("customer=A&item=t&quantity=", r#"quantity: must be a whole number from 1 to 1000000, not """#),
            ("customer=A&item=t&quantity=%2B3", r#"quantity: must be a whole number from 1 to 1000000, not "+3""#),
            ("customer=A&item=t&quantity=0", "quantity: must be a whole number from 1 to 1000000, not 0"),
            (
                "customer=A&item=t&quantity=99999999999999999999999",
                r#"quantity: must be a whole number from 1 to 1000000, not "99999999999999999999999""#,
            ),
            ("customer=A&customer=B", "customer: is there twice"),
            ("customer=%FF", "the body is not a form: its values are not UTF-8"),
            (
                r#"{"customer": "A", "item": "t", "quantity": 1}"#,
                "the body looks like JSON but was sent as a form; send the header `content-type: application/json`",
            ),
        ] {
            assert_eq!(form_of(body), Err(message.to_owned()), "{body}");
        }
    }
}
