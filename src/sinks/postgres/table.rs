//! Many rows of one table in one statement: a bound array a column.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, Postgres, postgres::PgArguments, query::Query};

use super::OnConflict;

/// A value, and how its column takes it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Text(Option<String>),
    /// JSON as text.
    Json(Option<String>),
    /// RFC 3339.
    Time(String),
    Number(Option<f64>),
    Flag(Option<bool>),
}

/// Columns by name; the same ones in the same order in every row of a table.
pub(super) type Row = Vec<(&'static str, Cell)>;

pub(super) struct Table {
    pub name: &'static str,
    /// The primary key.
    pub key: &'static [&'static str],
}

enum Column {
    Text(Vec<Option<String>>),
    Number(Vec<Option<f64>>),
    Flag(Vec<Option<bool>>),
}

impl Table {
    /// The statement that writes these rows; `None` where there are none. No key may stand there twice.
    pub fn insert(&self, mut rows: Vec<Row>, on_conflict: OnConflict) -> Option<Query<'static, Postgres, PgArguments>> {
        if on_conflict != OnConflict::Upsert {
            leave_out_unknown(&mut rows);
        }
        let first = rows.first()?;
        let names: Vec<&str> = first.iter().map(|(name, _)| *name).collect();
        let (mut types, mut values) = (Vec::with_capacity(names.len()), Vec::with_capacity(names.len()));
        for (at, (name, cell)) in first.iter().enumerate() {
            let (of_array, cast) = match cell {
                Cell::Text(_) => ("text", ""),
                Cell::Json(_) => ("text", "::jsonb"),
                Cell::Time(_) => ("text", "::timestamptz"),
                Cell::Number(_) => ("float8", ""),
                Cell::Flag(_) => ("bool", ""),
            };
            types.push(format!("${}::{of_array}[]", at + 1));
            values.push(format!("given.{name}{cast}"));
        }
        let conflict = match on_conflict {
            OnConflict::Upsert => {
                let set: Vec<String> = names.iter().filter(|name| !self.key.contains(*name)).map(|name| format!("{name} = EXCLUDED.{name}")).collect();
                format!("({}) DO UPDATE SET {}", self.key.join(", "), set.join(", "))
            }
            OnConflict::DoNothing | OnConflict::Error => format!("({}) DO NOTHING", self.key.join(", ")),
        };
        let (table, list, values, types) = (self.name, names.join(", "), values.join(", "), types.join(", "));
        let sql = format!("INSERT INTO {table} ({list}) SELECT {values} FROM unnest({types}) AS given ({list}) ON CONFLICT {conflict}");
        let mut columns: Vec<Column> = first.iter().map(|(_, cell)| Column::like(cell, rows.len())).collect();
        for row in rows {
            for (column, (_, cell)) in columns.iter_mut().zip(row) {
                column.push(cell);
            }
        }
        // Not kept by name at the server: that is what poolers lose.
        let query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
        Some(columns.into_iter().fold(query, |query, column| match column {
            Column::Text(values) => query.bind(values),
            Column::Number(values) => query.bind(values),
            Column::Flag(values) => query.bind(values),
        }))
    }
}

/// Takes out the columns of which no row knows anything: each one costs the server a pass, and most monitors leave half of
/// them empty.
fn leave_out_unknown(rows: &mut [Row]) {
    let mut known: BTreeSet<&'static str> = BTreeSet::new();
    for row in &*rows {
        known.extend(row.iter().filter(|(_, cell)| cell.is_known()).map(|(name, _)| *name));
    }
    rows.iter_mut().for_each(|row| row.retain(|(name, _)| known.contains(name)));
}

impl Cell {
    fn is_known(&self) -> bool {
        match self {
            Self::Text(text) | Self::Json(text) => text.is_some(),
            Self::Time(_) => true,
            Self::Number(number) => number.is_some(),
            Self::Flag(flag) => flag.is_some(),
        }
    }
}

impl Column {
    fn like(cell: &Cell, rows: usize) -> Self {
        match cell {
            Cell::Text(_) | Cell::Json(_) | Cell::Time(_) => Self::Text(Vec::with_capacity(rows)),
            Cell::Number(_) => Self::Number(Vec::with_capacity(rows)),
            Cell::Flag(_) => Self::Flag(Vec::with_capacity(rows)),
        }
    }

    fn push(&mut self, cell: Cell) {
        match (self, cell) {
            (Self::Text(values), Cell::Text(text) | Cell::Json(text)) => values.push(text),
            (Self::Text(values), Cell::Time(text)) => values.push(Some(text)),
            // No number and no infinity is a figure to nobody.
            (Self::Number(values), Cell::Number(number)) => values.push(number.filter(|number| number.is_finite())),
            (Self::Flag(values), Cell::Flag(flag)) => values.push(flag),
            // Rows of one table are made by one function; a gap keeps the columns even.
            (Self::Text(values), _) => values.push(None),
            (Self::Number(values), _) => values.push(None),
            (Self::Flag(values), _) => values.push(None),
        }
    }
}
