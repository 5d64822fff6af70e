//! A request's key: read from its header, with whose it is, and a fingerprint of the request that it names.
//!
//! Must not know stores.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Uri};
use sha2::{Digest, Sha256};

use super::KEY_HEADER;

/// The longest key, in bytes.
const LONGEST_KEY: usize = 255;

/// A longer scope, in bytes, is kept as its digest, so that it fits into an index.
const LONGEST_SCOPE: usize = 512;

/// What a digest in the place of a scope begins with.
const DIGEST: &str = "sha256:";

/// What names a request: its `Idempotency-Key`, and the scope within which that is unique (whose it is).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestKey {
    scope: String,
    key: String,
}

impl RequestKey {
    /// The key `key` of `scope`. A scope of more than 512 bytes, or with a NUL, is replaced by its SHA-256.
    pub fn new(scope: impl Into<String>, key: impl Into<String>) -> Self {
        let mut scope = scope.into();
        // One that looks like a digest as well, so that nobody can choose the name that a longer one gets.
        if scope.len() > LONGEST_SCOPE || scope.contains('\0') || scope.starts_with(DIGEST) {
            scope = format!("{DIGEST}{}", hex(&Sha256::digest(&scope)));
        }
        Self { scope, key: key.into() }
    }

    /// Whose it is: at most 512 bytes, no NUL.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// The key, without quotes: 1 to 255 visible ASCII characters where it came from a header.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A number for locks: the first 64 bits of a SHA-256 of both, the same in every process and version.
    pub fn number(&self) -> i64 {
        let mut hash = Sha256::new_with_prefix("unanimous idempotency key\0");
        part(&mut hash, self.scope.as_bytes());
        part(&mut hash, self.key.as_bytes());
        let digest = hash.finalize();
        let first = digest.first_chunk().expect("a SHA-256 has 32 bytes");
        i64::from_be_bytes(*first)
    }
}

/// A key that can't be read, or more than one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The request's key: a structured field's string (RFC 9651, 3.3.3) without parameters, or, as most clients send it, the same without quotes.
pub(super) fn key_of(headers: &HeaderMap) -> Result<Option<String>, Malformed> {
    let mut values = headers.get_all(KEY_HEADER).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => parse(value).map(Some),
        (Some(_), Some(_)) => Err(Malformed),
    }
}

fn parse(value: &HeaderValue) -> Result<String, Malformed> {
    let value = value.to_str().map_err(|_| Malformed)?.trim_matches([' ', '\t']);
    let key = match value.strip_prefix('"') {
        Some(quoted) => unquote(quoted)?,
        None => value.to_owned(),
    };
    let visible = key.bytes().all(|byte| byte.is_ascii_graphic());
    if visible && (1..=LONGEST_KEY).contains(&key.len()) { Ok(key) } else { Err(Malformed) }
}

/// What follows an opening quote, to the closing one.
fn unquote(text: &str) -> Result<String, Malformed> {
    let text = text.strip_suffix('"').ok_or(Malformed)?;
    let mut key = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return Err(Malformed),
            '\\' => match characters.next() {
                Some(escaped @ ('"' | '\\')) => key.push(escaped),
                _ => return Err(Malformed),
            },
            other => key.push(other),
        }
    }
    Ok(key)
}

/// A SHA-256 over what makes a request the same one: method, path and query of its whole URI, content type, body, and what else the application
/// says.
pub(super) fn fingerprint(parts: &Parts, uri: &Uri, body: &Bytes, more: Option<&str>) -> [u8; 32] {
    let mut hash = Sha256::new();
    part(&mut hash, parts.method.as_str().as_bytes());
    part(&mut hash, uri.path_and_query().map_or("", |path| path.as_str()).as_bytes());
    part(&mut hash, parts.headers.get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes));
    part(&mut hash, body);
    if let Some(more) = more {
        part(&mut hash, more.as_bytes());
    }
    hash.finalize().into()
}

/// With its length in front, so that no two lists of parts look the same.
fn part(hash: &mut Sha256, bytes: &[u8]) {
    hash.update(u64::try_from(bytes.len()).expect("a length has at most 64 bits").to_be_bytes());
    hash.update(bytes);
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn read(values: &[&[u8]]) -> Result<Option<String>, Malformed> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(KEY_HEADER, HeaderValue::from_bytes(value).unwrap());
        }
        key_of(&headers)
    }

    #[test]
    fn a_key_is_quoted_or_not_and_the_same() {
        let uuid = "8e03978e-40d5-43e8-bc93-6894a57f9324";
        for value in [uuid.to_owned(), format!("\"{uuid}\""), format!("  \"{uuid}\"\t")] {
            assert_eq!(read(&[value.as_bytes()]), Ok(Some(uuid.to_owned())), "{value}");
        }
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[br#""a\"b\\c""#]), Ok(Some(r#"a"b\c"#.to_owned())));
        assert_eq!(read(&[&[b'k'; 255]]), Ok(Some("k".repeat(255))));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let long = [b'k'; 256];
        let values: [&[u8]; 11] = [
            b"",
            b"\"\"",
            b"\"a",
            b"\"a\"b\"",
            b"\"a\\\"",
            b"\"a\\b\"",
            b"a b",
            b"\"a b\"",
            b"\"a\";p=1",
            "schlüssel".as_bytes(),
            &long,
        ];
        for value in values {
            assert_eq!(read(&[value]), Err(Malformed), "{value:?}");
        }
        assert_eq!(read(&[b"a", b"a"]), Err(Malformed));
    }

    #[test]
    fn a_scope_fits_into_an_index_and_nobody_can_choose_anothers() {
        assert_eq!(RequestKey::new("alice", "k").scope(), "alice");
        let long = RequestKey::new("a".repeat(513), "k");
        assert!(long.scope().starts_with("sha256:") && long.scope().len() == 71, "{}", long.scope());
        assert_ne!(RequestKey::new(long.scope(), "k").scope(), long.scope());
        assert_ne!(RequestKey::new("a\0", "k"), RequestKey::new("a", "k"));
        assert!(!RequestKey::new("a\0", "k").scope().contains('\0'));
    }

    /// Processes of several versions lock the same keys.
    #[test]
    fn a_keys_number_stays_what_it_is() {
        assert_eq!(RequestKey::new("alice", "k").number(), RequestKey::new("alice", "k").number());
        assert_ne!(RequestKey::new("alic", "ek").number(), RequestKey::new("alice", "k").number());
        assert_eq!(RequestKey::new("", "1").number(), -3_280_464_397_920_281_387);
    }

    #[test]
    fn each_part_of_a_request_is_in_its_fingerprint() {
        let of = |method: &str, uri: &str, content_type: &str, body: &'static str| {
            let request =
                Request::builder().method(method).uri(uri).header(CONTENT_TYPE, content_type).body(()).unwrap();
            let (parts, ()) = request.into_parts();
            fingerprint(&parts, &parts.uri, &Bytes::from_static(body.as_bytes()), None)
        };
        let first = of("POST", "/a?b=1", "text/plain", "c");
        assert_eq!(of("POST", "/a?b=1", "text/plain", "c"), first);
        // The same in both versions of HTTP, of which one sends the authority in the URI.
        assert_eq!(of("POST", "http://localhost/a?b=1", "text/plain", "c"), first);
        for other in [
            of("PATCH", "/a?b=1", "text/plain", "c"),
            of("POST", "/a?b=2", "text/plain", "c"),
            of("POST", "/a", "text/plain", "c"),
            of("POST", "/a?b=1", "text/html", "c"),
            of("POST", "/a?b=1", "text/plain", "d"),
            of("POST", "/a?b=1", "text/plai", "nc"),
        ] {
            assert_ne!(other, first);
        }
    }
}
