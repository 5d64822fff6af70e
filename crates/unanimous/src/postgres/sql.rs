//! Quoting for the few statements that take no parameters (`PREPARE TRANSACTION` and its like).
//!
//! Must not know what is quoted.

/// A string literal that reads the same whatever `standard_conforming_strings` says
/// (<https://www.postgresql.org/docs/current/sql-syntax-lexical.html>, 4.1.2.2).
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// A quoted identifier.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_doubled() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'b"), r" E'a\\''b'");
        assert_eq!(identifier(r#"a"b"#), r#""a""b""#);
    }
}
