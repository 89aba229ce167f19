use super::{Failure, Overrides, block_on, print, settings};
use crate::sinks::postgres;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Action {
    /// Make the tables and the view that the `postgres` sink writes, where they are missing
    Init {
        /// An entry of `connections.postgres`
        #[arg(long, value_name = "NAME", default_value = "default")]
        connection: String,
        /// Schema for the tables; it is made where it is missing [default: the connection's own]
        #[arg(long, value_name = "NAME")]
        schema: Option<String>,
        /// Print the SQL and do nothing
        #[arg(long)]
        print: bool,
    },
}

pub(super) fn postgres(overrides: &Overrides, action: Action) -> Result<(), Failure> {
    let Action::Init { connection, schema, print: only_print } = action;
    if only_print {
        return print(&postgres::schema_sql(schema.as_deref()).map_err(Failure::Usage)?);
    }
    let settings = settings(overrides)?;
    let place = block_on(async {
        let made = postgres::init(&settings.connections, &connection, schema.as_deref()).await;
        made.map_err(|message| Failure::Error(anyhow::Error::msg(message)))
    })?;
    eprintln!("{place} has evaluation_dataset, evaluation_results and evaluation_view");
    Ok(())
}
