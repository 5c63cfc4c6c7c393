//! Tables for people, on a terminal. Every cell is escaped: names come from outside.

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};

use crate::name::printable;

/// Rows under headings; the columns whose numbers stand in `right` are aligned to the right.
pub fn table(headings: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    made(headings, right, rows).trim_fmt()
}

/// The same where the last column is prose: it alone is broken into lines, as far as it keeps a readable width.
pub fn with_prose(headings: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    const READABLE: usize = 20;
    let mut table = made(headings, right, rows);
    let widths = table.column_max_content_widths();
    let Some((_, others)) = widths.split_last() else { return table.trim_fmt() };
    // Each column has a space on either side.
    let taken: usize = others.iter().map(|width| usize::from(*width) + 2).sum();
    if width().is_some_and(|width| taken + READABLE <= width) {
        for (column, _) in table.column_iter_mut().zip(others) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table.trim_fmt()
}

/// A table that leaves out the columns of `spare`, in that order, as far as it would else be wider than the terminal.
pub fn fitting(
    headings: &[&str],
    right: &[usize],
    spare: &[usize],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let mut rows: Vec<Vec<String>> = rows.into_iter().collect();
    for column in spare {
        let table = made(headings, right, rows.iter().cloned());
        let wide: usize = table.column_max_content_widths().iter().map(|width| usize::from(*width) + 2).sum();
        if width().is_none_or(|width| wide <= width) {
            return table.trim_fmt();
        }
        // An empty column is left out.
        rows.iter_mut().filter_map(|row| row.get_mut(*column)).for_each(String::clear);
    }
    made(headings, right, rows).trim_fmt()
}

/// How many columns the terminal has, if it says.
pub fn width() -> Option<usize> {
    Table::new().width().map(usize::from).filter(|width| *width >= NARROWEST)
}

/// A terminal that does not know its width says 0.
const NARROWEST: usize = 40;

/// Without the columns in which nothing stands, if there are rows at all.
fn made(headings: &[&str], right: &[usize], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    let rows: Vec<Vec<String>> = rows.into_iter().collect();
    let filled =
        |at: &usize| rows.is_empty() || rows.iter().any(|row| row.get(*at).is_some_and(|cell| !cell.is_empty()));
    let shown: Vec<usize> = (0..headings.len()).filter(filled).collect();
    table.set_header(shown.iter().map(|at| headings[*at].to_uppercase()));
    for row in &rows {
        table.add_row(shown.iter().map(|at| row.get(*at).map_or_else(String::new, |cell| printable(cell).to_string())));
    }
    if table.width().is_some_and(|width| usize::from(width) < NARROWEST) {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    // What a row is about must be fit to be copied.
    let first = table.column_max_content_widths().first().map_or(0, |width| usize::from(*width));
    if width().is_some_and(|width| first <= width / 2)
        && let Some(column) = table.column_mut(0)
    {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    for column in right.iter().filter_map(|right| shown.iter().position(|at| at == right)) {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
