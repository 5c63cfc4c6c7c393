//! Tables for people, on a terminal. Every cell is escaped: names come from outside.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::name::printable;

/// Rows under headings; the columns whose numbers stand in `right` are aligned to the right.
pub fn table(headings: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(headings.iter().map(|text| text.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    // A terminal that does not know its width says 0.
    if table.width().is_some_and(|width| width < 40) {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// How many characters fit into a line of the terminal, if standard output is one and says so.
pub fn width() -> Option<usize> {
    Table::new().width().map(usize::from)
}
