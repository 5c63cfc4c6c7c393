//! The corpus as it is kept: of each target one file, one input a line, escaped as Rust's byte strings are.

/// The inputs of a corpus file.
pub fn unpack(text: &str) -> Vec<Vec<u8>> {
    text.lines().map(unescape).collect()
}

fn unescape(line: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), line.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        let (byte, used) = match (first, after) {
            (b'\\', [b'x', high, low, ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16).expect("a digit after \\x") as u8;
                (digit(high) << 4 | digit(low), 4)
            }
            (b'\\', [b'n', ..]) => (b'\n', 2),
            (b'\\', [b'r', ..]) => (b'\r', 2),
            (b'\\', [b't', ..]) => (b'\t', 2),
            (b'\\', [other, ..]) => (*other, 2),
            _ => (*first, 1),
        };
        out.push(byte);
        rest = &rest[used..];
    }
    out
}

/// The text of a corpus file of at most `most` bytes: short inputs first.
pub fn pack(mut inputs: Vec<Vec<u8>>, most: usize) -> String {
    inputs.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    inputs.dedup();
    // Quotes need no escape here, and would only be noise.
    let lines =
        inputs.iter().map(|input| format!("{}\n", input.escape_ascii()).replace("\\\"", "\"").replace("\\'", "'"));
    let mut packed = String::new();
    for line in lines {
        if packed.len() + line.len() <= most {
            packed.push_str(&line);
        }
    }
    packed
}
