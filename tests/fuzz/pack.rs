//! `pack unpack FILE DIR`, `pack pack DIR FILE BYTES`: the kept corpus to and from what libFuzzer reads. Built by scripts/fuzz
//! with rustc alone.

#[path = "src/corpus.rs"]
mod corpus;

use std::error::Error;
use std::fs;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["unpack", file, dir] => {
            for (at, input) in corpus::unpack(&fs::read_to_string(file)?).into_iter().enumerate() {
                fs::write(format!("{dir}/kept-{at:04}"), input)?;
            }
        }
        ["pack", dir, file, most] => {
            let inputs = fs::read_dir(dir)?.map(|entry| fs::read(entry?.path())).collect::<Result<_, _>>()?;
            fs::write(file, corpus::pack(inputs, most.parse()?))?;
        }
        _ => return Err("usage: pack unpack FILE DIR | pack pack DIR FILE BYTES".into()),
    }
    Ok(())
}
