//! A small HTTP client: one server, JSON and forms, every status an answer and not an error.
//!
//! Must not know what the server does.

use std::fmt;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;

/// Longer than any answer takes on a busy machine; a server that hangs is told as an error.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// Bytes of an answer's body; more is an error.
const MAX_BODY: u64 = 1 << 30;

/// A client of one server. Cloned, it shares the connections.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    address: String,
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body. None where it was cut off.
    pub body: Option<String>,
}

/// There was no answer, or not a whole head of one.
#[derive(Debug)]
pub struct NoAnswer(ureq::Error);

impl NoAnswer {
    /// Whether the server took longer than the time limit, though the connection was there.
    pub fn is_timeout(&self) -> bool {
        matches!(self.0, ureq::Error::Timeout(_))
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server gave no answer")
    }
}

impl std::error::Error for NoAnswer {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; [`Value::Null`] where it is none.
    pub fn json(&self) -> Value {
        self.body.as_deref().and_then(|body| serde_json::from_str(body).ok()).unwrap_or(Value::Null)
    }

    /// The body as text; empty where it was cut off.
    pub fn text(&self) -> &str {
        self.body.as_deref().unwrap_or_default()
    }
}

impl Client {
    /// A client of the server at `address`, such as `127.0.0.1:8080`. Redirects are answers and are not followed.
    pub fn new(address: impl fmt::Display) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(TIME_LIMIT))
            .build();
        Self { agent: config.into(), address: address.to_string() }
    }

    /// Where the server is: `127.0.0.1:8080`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// GET with headers.
    ///
    /// # Errors
    ///
    /// When no answer came.
    pub fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer, NoAnswer> {
        let mut request = self.agent.get(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.call().map(answer).map_err(NoAnswer)
    }

    /// GET.
    ///
    /// # Errors
    ///
    /// When no answer came.
    pub fn get(&self, path: &str) -> Result<Answer, NoAnswer> {
        self.get_with(path, &[])
    }

    /// POST with headers.
    ///
    /// # Errors
    ///
    /// When no answer came.
    pub fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer, NoAnswer> {
        let mut request = self.agent.post(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send(body).map(answer).map_err(NoAnswer)
    }

    /// POST of JSON.
    ///
    /// # Errors
    ///
    /// When no answer came.
    pub fn post_json(&self, path: &str, body: &Value) -> Result<Answer, NoAnswer> {
        self.post_with(path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// POST of a form.
    ///
    /// # Errors
    ///
    /// When no answer came.
    pub fn post_form(&self, path: &str, fields: &[(&str, &str)]) -> Result<Answer, NoAnswer> {
        self.post_with(path, &[("content-type", "application/x-www-form-urlencoded")], form(fields).as_bytes())
    }
}

fn answer(mut response: ureq::http::Response<ureq::Body>) -> Answer {
    let headers = response.headers().iter();
    let headers =
        headers.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
    let headers = headers.collect();
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(MAX_BODY).read_to_vec().ok();
    Answer { status, headers, body: body.map(|body| String::from_utf8_lossy(&body).into_owned()) }
}

/// Fields as `application/x-www-form-urlencoded`.
pub fn form(fields: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = fields.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    pairs.join("&")
}

fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'*' => encoded.push(char::from(byte)),
            b' ' => encoded.push('+'),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_form_is_encoded() {
        assert_eq!(super::form(&[("item", "a b&c=ü"), ("quantity", "3")]), "item=a+b%26c%3D%C3%BC&quantity=3");
    }
}
