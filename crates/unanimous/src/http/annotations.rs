//! What a request says on its transaction: method, route, user and trace id.
//!
//! Must not know who reads it, nor how a request is routed.

use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, Uri};

use super::layer::TransactionLayer;
use crate::transaction::Tx;

/// The header of W3C's Trace Context.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What was found in a request's head, to be said once its transaction begins.
///
/// Apart from method and path, of which every request has some: most have none of it, and many begin no transaction.
pub(crate) struct Said(Option<Box<More>>);

struct More {
    route: Option<String>,
    user: Option<String>,
    trace: Option<Trace>,
}

enum Trace {
    Parent(TraceId),
    Own(String),
}

impl Said {
    /// Asks the layer's hooks.
    pub(crate) fn of<F>(parts: &Parts, layer: &TransactionLayer<F>) -> Self {
        let route = layer.route.as_ref().and_then(|route| route(parts));
        let user = layer.user.as_ref().and_then(|user| user(parts));
        let trace = match &layer.trace_id {
            Some(trace_id) => trace_id(parts).map(Trace::Own),
            None => TraceId::of(&parts.headers).map(Trace::Parent),
        };
        Self(match (&route, &user, &trace) {
            (None, None, None) => None,
            _ => Some(Box::new(More { route, user, trace })),
        })
    }

    /// Says it of a request with this method.
    pub(crate) fn on(self, tx: &Tx, method: &Method, uri: &Uri) {
        let (route, user, trace) = self.0.map_or((None, None, None), |more| (more.route, more.user, more.trace));
        // Without the query: it may hold what must not get into logs.
        let route = route.unwrap_or_else(|| uri.path().to_owned());
        tx.note(&format!("{method} {route}"));
        tx.set_extended_info("method", method.as_str());
        tx.set_extended_info("route", route);
        if let Some(trace) = trace {
            let id = match trace {
                Trace::Parent(id) => id.as_str().to_owned(),
                Trace::Own(id) => id,
            };
            tx.note(&format!("trace {id}"));
            tx.set_extended_info("trace_id", id);
        }
        if let Some(user) = user {
            tx.set_user(&user);
        }
    }
}

/// A trace id of W3C's Trace Context, section 3.2.2.3: 32 lowercase hexadecimal digits, not all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TraceId([u8; 32]);

impl TraceId {
    /// That of the one `traceparent` header; none where it is not well-formed, since whoever follows it would be misled.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (value, None) = (values.next()?, values.next()) else { return None };
        Self::parse(value.as_bytes())
    }

    /// `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`; a later version may go on after a further dash.
    fn parse(value: &[u8]) -> Option<Self> {
        let &[v, w, b'-', ref rest @ ..] = value else { return None };
        let (trace, rest) = rest.split_first_chunk::<32>()?;
        let [b'-', rest @ ..] = rest else { return None };
        let (parent, rest) = rest.split_first_chunk::<16>()?;
        let &[b'-', f, g, ref more @ ..] = rest else { return None };
        let later = [v, w] != *b"00" && [v, w] != *b"ff";
        let ends = more.is_empty() || later && more[0] == b'-';
        let digits = [v, w, f, g];
        let hexadecimal = digits.iter().chain(trace).chain(parent).all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        let said = [&trace[..], &parent[..]].iter().all(|id| id.iter().any(|&c| c != b'0'));
        (hexadecimal && said && ends && [v, w] != *b"ff").then_some(Self(*trace))
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits are text")
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_traceparent_that_is_well_formed_counts() {
        for good in [
            format!("00-{ID}-00f067aa0ba902b7-01"),
            format!("cc-{ID}-00f067aa0ba902b7-01"),
            format!("cc-{ID}-00f067aa0ba902b7-01-what comes later"),
        ] {
            assert_eq!(TraceId::parse(good.as_bytes()).map(|id| id.as_str().to_owned()).as_deref(), Some(ID), "{good}");
        }
        for bad in [
            String::new(),
            ID.to_owned(),
            format!("00-{ID}-00f067aa0ba902b7"),
            format!("00-{ID}-00f067aa0ba902b7-01-more"),
            format!("cc-{ID}-00f067aa0ba902b7-01more"),
            format!("ff-{ID}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", ID.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{ID}-{}-01", "0".repeat(16)),
            format!("00-{ID}-00f067aa0ba902b7-0x"),
            format!("00-{ID}-00f067aa0ba902b-01"),
            format!("00-{ID}+00f067aa0ba902b7-01"),
            format!("0g-{ID}-00f067aa0ba902b7-01"),
        ] {
            assert_eq!(TraceId::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn one_of_two_traceparents_is_nobodys() {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::try_from(format!("00-{ID}-00f067aa0ba902b7-01")).unwrap();
        headers.append(TRACEPARENT, value.clone());
        assert!(TraceId::of(&headers).is_some());
        headers.append(TRACEPARENT, value);
        assert_eq!(TraceId::of(&headers), None);
    }
}
