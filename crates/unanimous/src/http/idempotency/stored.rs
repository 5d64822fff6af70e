//! A response as it is kept, and as it is given again.
//!
//! Must not know where it is kept.

use std::error::Error;
use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use unanimous_core::TransactionId;

use crate::outcomes::was_seen_to_commit;
use crate::transaction::Tx;

/// A first response, with what tells whether a repeat is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResponse {
    /// A SHA-256 of the request.
    pub fingerprint: [u8; 32],
    /// The transaction that it committed with: its id as a text.
    pub transaction: String,
    /// Its status.
    pub status: StatusCode,
    /// Those of its headers that are kept.
    pub headers: HeaderMap,
    /// Its whole body.
    pub body: Bytes,
}

impl StoredResponse {
    /// Whether this process has seen the response's transaction commit, and remembers it, so that a row that was read is known to last.
    ///
    /// Where it has not, a row can be visible that is not on the disk, or not on the replicas, and is lost yet: a
    /// [`KeyStore`](super::KeyStore) then writes in `tx`, the repeat's transaction, before it gives the response, so that the repeat is answered
    /// when that has committed (rule 3).
    pub fn was_seen_to_commit(&self, tx: &Tx) -> bool {
        let id = self.transaction.parse::<TransactionId>();
        id.is_ok_and(|id| was_seen_to_commit(&tx.shared.manager, id))
    }

    /// The headers as a store keeps them: a line `name: value` for each, ended by a line feed, which no header has.
    pub fn headers_to_bytes(&self) -> Vec<u8> {
        let mut lines = Vec::new();
        for (name, value) in &self.headers {
            lines.extend_from_slice(name.as_str().as_bytes());
            lines.extend_from_slice(b": ");
            lines.extend_from_slice(value.as_bytes());
            lines.push(b'\n');
        }
        lines
    }

    /// The headers that [`headers_to_bytes`](Self::headers_to_bytes) gave.
    ///
    /// # Errors
    ///
    /// [`DamagedHeaders`] for anything else.
    pub fn headers_from_bytes(bytes: &[u8]) -> Result<HeaderMap, DamagedHeaders> {
        let mut headers = HeaderMap::new();
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            let line = line.strip_suffix(b"\n").ok_or(DamagedHeaders)?;
            let colon = line.windows(2).position(|two| two == b": ").ok_or(DamagedHeaders)?;
            let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| DamagedHeaders)?;
            let value = HeaderValue::from_bytes(&line[colon + 2..]).map_err(|_| DamagedHeaders)?;
            headers.append(name, value);
        }
        Ok(headers)
    }
}

/// Kept headers that can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedHeaders;

impl fmt::Display for DamagedHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the kept headers of a response can't be read; delete its row to forget its key")
    }
}

impl Error for DamagedHeaders {}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(headers: HeaderMap) -> StoredResponse {
        let (fingerprint, transaction) = ([7; 32], "1.2.3.4".to_owned());
        StoredResponse { fingerprint, transaction, status: StatusCode::CREATED, headers, body: Bytes::new() }
    }

    #[test]
    fn headers_come_back_as_they_were() {
        let mut headers = HeaderMap::new();
        assert_eq!(
            StoredResponse::headers_from_bytes(&stored(headers.clone()).headers_to_bytes()),
            Ok(headers.clone())
        );
        headers.append("etag", HeaderValue::from_static("\"a: b\""));
        headers.append("link", HeaderValue::from_static("</a>; rel=next"));
        headers.append("link", HeaderValue::from_static(""));
        headers.append("x-odd", HeaderValue::from_bytes(b"\xfc\ttab").unwrap());
        let bytes = stored(headers.clone()).headers_to_bytes();
        assert_eq!(StoredResponse::headers_from_bytes(&bytes), Ok(headers));
    }

    #[test]
    fn damaged_headers_are_told() {
        for bytes in [&b"etag: 1"[..], b"etag\n", b"\n", b": 1\n", b"e tag: 1\n", b"etag: \x01\n"] {
            assert_eq!(StoredResponse::headers_from_bytes(bytes), Err(DamagedHeaders), "{bytes:?}");
        }
    }
}
