//! Paths that a transaction may use: relative, below the root, with one spelling each.
//!
//! Must not know what is on the disk: links, folders and mounts are looked at in [`folder`](super::folder).

use std::fmt;
use std::path::Path;

use super::error::FilesError;
use super::folder::{OWN, OWN_NEW};

/// The longest name of a file or folder, in bytes: what Linux and macOS file systems take.
const MAX_NAME: usize = 255;

/// The longest path, in bytes: Linux's PATH_MAX without the final NUL.
const MAX_PATH: usize = 4095;

/// A checked path: one or more names, separated by single slashes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RelPath(String);

impl RelPath {
    pub(super) fn new(path: &Path) -> Result<Self, FilesError> {
        let refuse = |why| Err(FilesError::Path { path: path.to_string_lossy().into_owned(), why });
        let Some(text) = path.to_str() else {
            return refuse("it is not UTF-8, and could not be written into a manifest that people can read");
        };
        match Self::check(text) {
            Ok(()) => Ok(Self(text.to_owned())),
            Err(why) => refuse(why),
        }
    }

    /// Checks what a path's text alone can tell.
    fn check(text: &str) -> Result<(), &'static str> {
        if text.is_empty() {
            return Err("it is empty");
        }
        if text.starts_with('/') {
            return Err("it is absolute; give it relative to the root");
        }
        if text.len() > MAX_PATH {
            return Err("it is longer than 4095 bytes");
        }
        if text.contains('\0') {
            return Err("it contains a NUL byte");
        }
        for name in text.split('/') {
            match name {
                "" => return Err("it has an empty part (a double slash, or one at the end)"),
                "." | ".." => return Err("it contains . or .., and each file must have one spelling, below the root"),
                _ if name.len() > MAX_NAME => return Err("one of its names is longer than 255 bytes"),
                _ => {}
            }
        }
        let first = text.split('/').next().unwrap_or_default();
        // Not by exact case: a file system that ignores case would let it through.
        if first.eq_ignore_ascii_case(OWN) || first.eq_ignore_ascii_case(OWN_NEW) {
            return Err("it is in the folder that the store keeps its own files in");
        }
        Ok(())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The names of the folders on the way, outermost first.
    pub(super) fn folders(&self) -> impl Iterator<Item = &str> {
        self.0.rsplit_once('/').map(|(folders, _)| folders.split('/')).into_iter().flatten()
    }

    /// The file's own name.
    pub(super) fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(self.0.as_str(), |(_, name)| name)
    }

    /// Whether both can't be files at once, or are the same one.
    pub(super) fn collides(&self, other: &Self) -> bool {
        self == other || self.is_above(other) || other.is_above(self)
    }

    /// Whether `other` would be a file in the folder `self`.
    fn is_above(&self, other: &Self) -> bool {
        other.0.strip_prefix(&self.0).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The path on one line: control characters and `%` as `%XX`.
    pub(super) fn escaped(&self) -> String {
        let mut line = String::with_capacity(self.0.len());
        for character in self.0.chars() {
            if character.is_ascii_control() || character == '%' {
                line.push_str(&format!("%{:02X}", u32::from(character)));
            } else {
                line.push(character);
            }
        }
        line
    }

    /// The path that [`escaped`](Self::escaped) wrote, and nothing else.
    pub(super) fn unescaped(line: &str) -> Option<Self> {
        let mut bytes = Vec::with_capacity(line.len());
        let mut rest = line.bytes();
        while let Some(byte) = rest.next() {
            if byte == b'%' {
                let digits = [rest.next()?, rest.next()?];
                bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
            } else {
                bytes.push(byte);
            }
        }
        let path = Self::new(Path::new(&String::from_utf8(bytes).ok()?)).ok()?;
        (path.escaped() == line).then_some(path)
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::new(Path::new(text)).unwrap()
    }

    #[test]
    fn paths_that_leave_the_root_or_have_two_spellings_are_refused() {
        let long = "x".repeat(256);
        let deep = "y/".repeat(2048) + "y";
        for (text, says) in [
            ("", "empty"),
            ("/etc/passwd", "absolute"),
            ("..", ".."),
            ("a/../../b", ".."),
            ("./a", "."),
            ("a/./b", "."),
            ("a//b", "empty part"),
            ("a/", "empty part"),
            ("a\0b", "NUL"),
            (".unanimous", "own files"),
            (".unanimous/identity", "own files"),
            (".UnAnimous/lock", "own files"),
            (".unanimous-new/x", "own files"),
            (&long, "255"),
            (&format!("a/{long}"), "255"),
            (&deep, "4095"),
        ] {
            let error = RelPath::new(Path::new(text)).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_not_utf8_are_refused() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let error = RelPath::new(Path::new(OsStr::from_bytes(b"a\xff"))).unwrap_err();
        assert!(error.to_string().contains("UTF-8"), "{error}");
    }

    #[test]
    fn ordinary_paths_are_taken_apart() {
        let deep = path("a/b c/ü.txt");
        assert_eq!(deep.folders().collect::<Vec<_>>(), ["a", "b c"]);
        assert_eq!(deep.name(), "ü.txt");
        assert_eq!(path("x").folders().count(), 0);
        assert_eq!(path("x").name(), "x");
        assert_eq!(path("a/.unanimous").name(), ".unanimous");
        assert_eq!(path(&"x".repeat(255)).name().len(), 255);
    }

    #[test]
    fn a_file_collides_with_itself_its_folders_and_what_is_below() {
        assert!(path("a/b").collides(&path("a/b")));
        assert!(path("a/b").collides(&path("a")));
        assert!(path("a").collides(&path("a/b/c")));
        assert!(!path("a/b").collides(&path("a/bc")));
        assert!(!path("ab").collides(&path("a")));
    }

    #[test]
    fn escaping_keeps_every_name_on_one_line() {
        for text in ["a", "a b", "100%", "line\nbreak", "\r\t\u{7f}", "%0A", "ü/€"] {
            let escaped = path(text).escaped();
            assert!(!escaped.contains('\n') && !escaped.contains('\r'), "{escaped:?}");
            assert_eq!(RelPath::unescaped(&escaped), Some(path(text)));
        }
        for wrong in ["%", "%4", "%zz", "%41", "%0a", "../x", ""] {
            assert_eq!(RelPath::unescaped(wrong), None, "{wrong:?}");
        }
    }
}
