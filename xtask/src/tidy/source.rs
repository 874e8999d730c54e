//! Rust text with comments and literals blanked out, so that rules can look for code without parsing it.

use std::ops::Range;

/// A file's text, and the same with every byte of a comment, string or character replaced by a blank.
pub struct Source<'a> {
    /// The text.
    pub text: &'a str,
    /// Code only; newlines and byte offsets are kept.
    pub code: String,
}

impl<'a> Source<'a> {
    pub fn new(text: &'a str) -> Self {
        let bytes = text.as_bytes();
        let mut code = bytes.to_vec();
        let mut i = 0;
        while i < bytes.len() {
            let end = skipped(bytes, i);
            if end == i {
                i += 1;
                continue;
            }
            for byte in code[i..end].iter_mut().filter(|b| **b != b'\n') {
                *byte = b' ';
            }
            i = end;
        }
        Self { text, code: String::from_utf8(code).unwrap_or_default() }
    }

    /// The line number, from 1, of a byte offset.
    pub fn line(&self, at: usize) -> usize {
        self.text.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count() + 1
    }

    /// Offsets at which `word` stands by itself in the code.
    pub fn words(&self, word: &str) -> Vec<usize> {
        let code = self.code.as_bytes();
        let part = |i: usize| code.get(i).is_some_and(|&b| b.is_ascii_alphanumeric() || b == b'_');
        let starts = self.code.match_indices(word).map(|(i, _)| i);
        starts.filter(|&i| !(i > 0 && part(i - 1)) && !part(i + word.len())).collect()
    }

    /// The items under `#[cfg(test)]`, attribute included.
    pub fn tests(&self) -> Vec<Range<usize>> {
        let mut found: Vec<Range<usize>> = Vec::new();
        for (start, marker) in self.code.match_indices("#[cfg(test)]") {
            if found.last().is_none_or(|last| last.end <= start) {
                found.push(start..self.item_end(start + marker.len()));
            }
        }
        found
    }

    /// Where the item that starts at `at` ends: after its block, or after its semicolon if it has none.
    pub fn item_end(&self, at: usize) -> usize {
        let code = self.code.as_bytes();
        let mut depth = 0usize;
        for (i, &byte) in code.iter().enumerate().skip(at) {
            match byte {
                b'(' | b'[' => depth += 1,
                b')' | b']' => depth = depth.saturating_sub(1),
                b';' if depth == 0 => return i + 1,
                b'{' if depth == 0 => return self.block_end(i),
                _ => {}
            }
        }
        code.len()
    }

    fn block_end(&self, open: usize) -> usize {
        let mut depth = 0usize;
        for (i, byte) in self.code.bytes().enumerate().skip(open) {
            match byte {
                b'{' => depth += 1,
                b'}' => {
                    depth -= 1;
                    if depth == 0 {
                        return i + 1;
                    }
                }
                _ => {}
            }
        }
        self.code.len()
    }

    /// Every function with a body: its name and extent.
    pub fn functions(&self) -> Vec<(&'a str, Range<usize>)> {
        let mut found = Vec::new();
        for start in self.words("fn") {
            let after = &self.text[start + 2..];
            let name = after.trim_start();
            let length = name.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(name.len());
            let end = self.item_end(start);
            // A pointer type or a macro's `fn $name` has no name here, and a declaration has no body.
            if length > 0 && self.code[..end].ends_with('}') {
                found.push((&name[..length], start..end));
            }
        }
        found
    }

    /// Lines outside of tests.
    pub fn lines_without_tests(&self) -> usize {
        let in_tests: usize = self.tests().into_iter().map(|t| self.text[t].lines().count()).sum();
        self.text.lines().count() - in_tests
    }
}

/// The end of the comment or literal that starts at `i`, or `i` if none does.
fn skipped(text: &[u8], i: usize) -> usize {
    let rest = &text[i..];
    let before = i.checked_sub(1).map_or(b' ', |j| text[j]);
    let after_name = before.is_ascii_alphanumeric() || before == b'_';
    if rest.starts_with(b"//") {
        return i + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        return block_comment(text, i);
    }
    if rest[0] == b'"' {
        return quoted(text, i + 1, b'"');
    }
    let prefix = [&b"br"[..], b"cr", b"r"].into_iter().find(|p| rest.starts_with(p));
    if let (Some(prefix), false) = (prefix, after_name) {
        let hashes = rest[prefix.len()..].iter().take_while(|&&b| b == b'#').count();
        if rest.get(prefix.len() + hashes) == Some(&b'"') {
            let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
            let body = i + prefix.len() + hashes + 1;
            let length = text[body..].windows(close.len()).position(|w| w == close);
            return length.map_or(text.len(), |n| body + n + close.len());
        }
    }
    if rest[0] == b'\'' {
        return character(text, i);
    }
    i
}

fn block_comment(text: &[u8], start: usize) -> usize {
    let (mut i, mut depth) = (start, 0usize);
    while i < text.len() {
        match &text[i..] {
            [b'/', b'*', ..] => (i, depth) = (i + 2, depth + 1),
            [b'*', b'/', ..] => (i, depth) = (i + 2, depth - 1),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

fn quoted(text: &[u8], start: usize, quote: u8) -> usize {
    let mut i = start;
    while i < text.len() && text[i] != quote {
        i += if text[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(text.len())
}

/// A character literal ends within a few bytes; otherwise the quote begins a lifetime.
fn character(text: &[u8], i: usize) -> usize {
    if text.get(i + 1) == Some(&b'\\') {
        return quoted(text, i + 1, b'\'');
    }
    let width = text.get(i + 1).map_or(1, |&b| match b {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    });
    if text.get(i + 1 + width) == Some(&b'\'') { i + width + 2 } else { i }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_code() {
        let text =
            "let a = \"dbg!(\\\"\"; // dbg!\nlet b = r#\"dbg!\"#; /* dbg! /* dbg! */ */ let c = 'd'; dbg!('\\'');";
        let source = Source::new(text);
        assert_eq!(source.words("dbg").len(), 1);
        assert_eq!(source.code.len(), text.len());
        assert_eq!(source.line(source.words("dbg")[0]), 2);
    }

    #[test]
    fn lifetimes_are_code() {
        let source = Source::new("fn f<'a>(x: &'a str) -> &'a str { x }");
        assert_eq!(source.functions(), [("f", 0..37)]);
    }

    #[test]
    fn tests_are_found_whole() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {\n    }\n}\nfn c() {}\n#[cfg(test)]\nmod more;\n";
        let source = Source::new(text);
        assert_eq!(source.tests().len(), 2);
        assert_eq!(source.lines_without_tests(), 2);
    }

    #[test]
    fn declarations_have_no_body() {
        let source = Source::new("trait T { fn a(&self, x: [u8; 4]) -> u8; fn b(&self) { () } } type P = fn(u8);");
        assert_eq!(source.functions().iter().map(|f| f.0).collect::<Vec<_>>(), ["b"]);
    }
}
