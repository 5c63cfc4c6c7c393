//! The files of bak-state's database.

use bak_common::name::GuestName;
use bak_state::Status;
use bak_state::format::{Details, Table, check_version, find};
use std::collections::BTreeMap;

fn rows(table: &Table) -> BTreeMap<String, &'static str> {
    let rows: Vec<_> = table.rows().map(|(vm, status)| (vm.into_owned(), status.as_str())).collect();
    let map: BTreeMap<_, _> = rows.iter().cloned().collect();
    assert_eq!(map.len(), rows.len(), "each guest is there once");
    map
}

fn text(table: &Table) -> Option<Vec<u8>> {
    table.to_pieces().map(|pieces| pieces.concat().into_bytes())
}

pub fn statedb(data: &[u8]) {
    let mut table = Table::parse(data);
    let read = rows(&table);
    for (vm, status) in &read {
        assert!(GuestName::new(vm.as_str()).is_ok());
        assert_eq!(table.get(vm).map(Status::as_str), Some(*status));
    }
    assert_eq!(text(&table), None, "what is not changed is not written");
    // Set one by one they say the same.
    let mut anew = Table::parse(b"");
    for (vm, status) in table.rows() {
        anew.set(&vm, status);
    }
    let written = text(&anew).unwrap_or_default();
    assert_eq!(rows(&Table::parse(&written)), read);
    assert!(!anew.keeps_order() || rows(&Table::known(&written)) == read);
    // Edited, it says what it was told, and no line is lost but those that could not be read.
    let (damaged, mut told) = (!table.damage.is_empty(), read.clone());
    if let Some((first, _)) = read.first_key_value() {
        table.set(first, Status::Archived);
        told.insert(first.clone(), "ARCHIVED");
    }
    if let Some((last, _)) = read.last_key_value().filter(|_| read.len() > 1) {
        table.remove(last);
        told.remove(last);
    }
    table.set("a%\nb:", Status::New);
    told.insert("a%\nb:".into(), "NEW");
    assert_eq!(rows(&table), told);
    assert_eq!(table.mend().is_empty(), !damaged);
    let written = text(&table).unwrap_or_else(|| data.to_vec());
    let again = Table::parse(&written);
    assert!(again.damage.is_empty(), "{:?}", again.damage);
    assert_eq!(rows(&again), told);
}

pub fn details(data: &[u8]) {
    let details = Details::parse(data);
    let mut table = Table::parse(b"");
    details.by_vm.keys().for_each(|vm| table.set(vm, Status::Clean));
    let text = details.to_text(&table).expect("details are written");
    let again = Details::parse(&text);
    assert!(again.damage.is_empty(), "{:?}", again.damage);
    assert_eq!(again.by_vm, details.by_vm);
    let read = |from: u64, most: usize| {
        let from = from as usize;
        Ok(text[from..text.len().min(from + most)].to_vec())
    };
    for (vm, detail) in &details.by_vm {
        let found = find(text.len() as u64, vm, read).expect("memory is read");
        assert!(found.is_none_or(|found| found == *detail));
    }
}

pub fn version(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match check_version(&text) {
        Ok(()) => assert!(text.contains("1.0")),
        Err(error) => super::assert_printable(&error.to_string()),
    }
}
