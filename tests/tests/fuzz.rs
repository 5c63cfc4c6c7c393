//! Every parser over the kept corpus and some thousand mutations of it, the same each time. scripts/fuzz looks further.

#[path = "../fuzz/src/corpus.rs"]
mod corpus;
#[path = "../fuzz/src/targets/mod.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");
/// Of each target.
const MUTATIONS: usize = 500;
const LENGTH_MAX: usize = 64 << 10;

/// What parsers trip over.
const WORDS: [&[u8]; 18] = [
    b"..",
    b"/",
    b"../../etc/passwd",
    b"\0",
    b"\n",
    b"\n\n",
    b"\x1b]0;x\x07",
    b"\xff\xfe",
    "\u{202e}".as_bytes(),
    b"-rf",
    b"%00%2F",
    b"18446744073709551615",
    b"-1e400",
    b"9999-12-31T23:59:59-23:59",
    b"\\u0000",
    b"\"",
    b":",
    b"{\"v\":1,",
];

struct Random(u64);

impl Random {
    /// Below `most`, which is not 0.
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % most
    }

    fn mutate(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut input = inputs[self.below(inputs.len())].clone();
        for _ in 0..=self.below(4) {
            let at = self.below(input.len() + 1);
            let end = at + self.below(input.len() - at + 1);
            match self.below(7) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 => _ = input.drain(at..end.min(at + 16)),
                2 => _ = input.splice(at..at, WORDS[self.below(WORDS.len())].iter().copied()),
                3 => _ = input.splice(at..end, WORDS[self.below(WORDS.len())].iter().copied()),
                4 => {
                    let other = &inputs[self.below(inputs.len())];
                    let from = self.below(other.len() + 1);
                    input.splice(at.., other[from..].iter().copied());
                }
                5 if self.below(20) == 0 => {
                    let part = [b"[", b"{", b"a", b"\n", b"9"][self.below(5)].repeat(self.below(LENGTH_MAX));
                    input.splice(at..at, part);
                }
                _ => {
                    let part = input[at..end].to_vec();
                    input.splice(at..at, part);
                }
            }
            input.truncate(LENGTH_MAX);
        }
        input
    }
}

#[test]
fn every_parser_bears_the_corpus_and_mutations_of_it() {
    let mut known: Vec<String> = targets::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut kept: Vec<String> =
        Path::new(CORPUS).read_dir().unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    known.sort();
    kept.sort();
    assert_eq!(kept, known, "each target has its corpus, and each corpus its target");
    let mut failed = Vec::new();
    for (name, target) in targets::TARGETS {
        let inputs = corpus::unpack(&std::fs::read_to_string(format!("{CORPUS}/{name}")).unwrap());
        let mut random = Random(name.len() as u64);
        let mutated: Vec<_> = (0..MUTATIONS).map(|_| random.mutate(&inputs)).collect();
        let bears = |input: &&Vec<u8>| catch_unwind(AssertUnwindSafe(|| target(input))).is_ok();
        if let Some(input) = inputs.iter().chain(&mutated).find(|input| !bears(input)) {
            failed.push(format!("{name}: {}", input.escape_ascii()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_corpus_is_read_as_it_was_written() {
    let inputs = vec![b"#\n\\\x00\xff\"'\r\t".to_vec(), b"plain \\x41".to_vec()];
    let mut read = corpus::unpack(&corpus::pack(inputs.clone(), 1 << 10));
    read.sort();
    assert_eq!(read, inputs);
}
