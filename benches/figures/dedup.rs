//! Looking up a run's items in a ledger of millions, beside what the older tools do: read a CSV of the keys.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
    time::Instant,
};

use anyhow::ensure;
use assayd::{
    model::ItemKey,
    store::{self, Store},
};
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use crate::{
    Size, process,
    report::{Report, median, shown},
};

const SOURCE: &str = "langfuse:support-bot";
const MONITOR: &str = "support-answers";

fn item_id(number: usize) -> String {
    format!("trace-{number:012}")
}

pub fn figures(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let stored = size.pick(5_000_000, 200_000);
    let dir = TempDir::with_prefix("assayd-figures-")?;
    let csv = dir.path().join("keys.csv");
    write_csv(&csv, stored)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ours = runtime.block_on(async {
        seed(dir.path(), stored).await?;
        look_up(dir.path(), stored).await
    })?;
    let (wall, cpu) = scan(&csv, stored)?;
    let reference = format!("one pass over a CSV of the same keys: {}, {} of CPU", shown(wall, "ms"), shown(cpu, "ms"));
    report.figure(&format!("dedup of {BATCH} ids, half of them known, against {stored} stored"), ours, "ms", Some(100.0), &reference);
    Ok(())
}

/// The ledger's table, filled in the order of its keys: what millions of runs leave, in seconds instead of months.
async fn seed(state: &Path, stored: usize) -> anyhow::Result<()> {
    let (opened, writer) = Store::open(state).await?;
    // Migrated; from here on this is the only connection.
    drop((opened, writer));
    let mut keys: Vec<(ItemKey, usize)> = (0..stored).map(|number| (ItemKey::new(SOURCE, MONITOR, &item_id(number)), number)).collect();
    keys.sort_unstable();
    let mut connection: SqliteConnection =
        SqliteConnectOptions::new().filename(state.join(store::FILE)).pragma("synchronous", "off").pragma("cache_size", "-200000").connect().await?;
    sqlx::query("INSERT INTO monitors (id, name) VALUES (1, $1)").bind(MONITOR).execute(&mut connection).await?;
    for chunk in keys.chunks(20_000) {
        let mut rows = String::with_capacity(chunk.len() * 60 + 2);
        for (at, (key, number)) in chunk.iter().enumerate() {
            rows.push_str(if at == 0 { "[[\"" } else { ",[\"" });
            for byte in key.0 {
                write!(rows, "{byte:02x}")?;
            }
            write!(rows, "\",\"{}\",{}]", item_id(*number), 1_790_000_000_000_000_u64 + *number as u64 * 1_000_000)?;
        }
        rows.push(']');
        sqlx::query(
            "INSERT INTO items (key, monitor, item_id, item_us, decision, reason, run_id, attempts, seen_us, decided_us)
             SELECT unhex(value ->> 0), 1, value ->> 1, value ->> 2, 'scored', 'all metrics have an outcome', '605aeab8-6b8a-5679-8592-ec6c72272cdd', 1, value ->> 2, value ->> 2 FROM json_each($1)",
        )
        .bind(rows)
        .execute(&mut connection)
        .await?;
    }
    connection.close().await?;
    Ok(())
}

/// Items that a run brings.
const BATCH: usize = 10_000;

/// Milliseconds of the median round; every round looks up others.
async fn look_up(state: &Path, stored: usize) -> anyhow::Result<f64> {
    let store = Store::open_to_read(state).await?;
    let mut rounds = Vec::new();
    for round in 0..7 {
        let keys: Vec<ItemKey> = batch(stored, round).map(|number| ItemKey::new(SOURCE, MONITOR, &item_id(number))).collect();
        let started = Instant::now();
        let known = store.known(&keys).await?;
        rounds.push(started.elapsed().as_secs_f64() * 1000.0);
        ensure!(known.len() == BATCH / 2, "{} of {BATCH} ids are known, half should be", known.len());
    }
    Ok(median(rounds))
}

/// Half from all over what is stored, half new.
fn batch(stored: usize, round: usize) -> impl Iterator<Item = usize> {
    let half = BATCH / 2;
    (0..half).map(move |at| at * (stored / half) + round).chain(stored + round * half..stored + (round + 1) * half)
}

fn write_csv(path: &Path, stored: usize) -> anyhow::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for number in 0..stored {
        writeln!(file, "{SOURCE},{MONITOR},{}", item_id(number))?;
    }
    Ok(file.flush()?)
}

/// Wall and CPU time in milliseconds.
fn scan(csv: &Path, stored: usize) -> anyhow::Result<(f64, f64)> {
    let wanted: HashSet<String> = batch(stored, 0).map(|number| format!("{SOURCE},{MONITOR},{}", item_id(number))).collect();
    let (started, cpu) = (Instant::now(), process::cpu(std::process::id())?);
    let (mut reader, mut line, mut found) = (BufReader::with_capacity(1 << 20, File::open(csv)?), String::new(), 0);
    while reader.read_line(&mut line)? > 0 {
        found += usize::from(wanted.contains(line.trim_end()));
        line.clear();
    }
    ensure!(found == BATCH / 2, "the CSV holds {found} of the ids, half should be");
    Ok((started.elapsed().as_secs_f64() * 1000.0, process::cpu(std::process::id())?.saturating_sub(cpu).as_secs_f64() * 1000.0))
}
