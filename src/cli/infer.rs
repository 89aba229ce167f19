use std::{
    io::{Read, Write},
    path::PathBuf,
    sync::Arc,
};

use serde_json::{Value, json};

use super::{Failure, Format, Overrides, block_on, logs, print, settings};
use crate::{
    config::Settings,
    daemon,
    providers::{Message, Question, Reply, Stop},
    store::lock::{Holder, LockError, StateLock},
    util::text,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A profile of assayd.yaml [default: the environment's, or the only one there is]
    #[arg(long)]
    profile: Option<String>,
    /// JSON Schema that the answer has to follow
    #[arg(long, value_name = "FILE")]
    json_schema: Option<PathBuf>,
    /// Put before the prompt, behind the profile's own
    #[arg(long)]
    system: Option<String>,
    /// Print the answer as it comes
    #[arg(long, conflicts_with = "format")]
    stream: bool,
    /// What to ask; `-` or nothing reads it from standard input
    prompt: Option<String>,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

pub(super) fn infer(overrides: &Overrides, arguments: &Arguments) -> Result<(), Failure> {
    let settings = settings(overrides)?;
    let log = crate::config::LogSpec { file: None, level: overrides.log_level.clone().unwrap_or_else(|| "warn".to_owned()), ..settings.log.clone() };
    let _guard = logs::start(&log)?;
    let profile = profile(&settings, arguments.profile.as_deref())?;
    let question = Question {
        system: arguments.system.clone(),
        messages: vec![Message::user(prompt(arguments.prompt.as_deref())?)],
        schema: arguments.json_schema.as_deref().map(schema).transpose()?.map(Arc::new),
        ..Question::default()
    };
    let me = Holder { pid: std::process::id(), command: "assayd infer".to_owned(), listen: None };
    let streams = arguments.stream;
    let reply = match StateLock::take(&settings.state, &me) {
        Ok(lock) => {
            let tell = |part: &str| {
                if streams {
                    // A reader that went away wants no more of it.
                    let _ = print(part);
                }
            };
            let reply = block_on(async { Ok(daemon::infer(settings, &profile, question, tell).await?) })?;
            drop(lock);
            reply
        }
        Err(LockError::Held(_, Holder { listen: Some(address), .. })) => {
            let reply = block_on(by_daemon(&settings, &address, &profile, &question))?;
            if streams {
                print(&reply.text)?;
            }
            reply
        }
        Err(error) => return Err(Failure::Usage(error.to_string())),
    };
    match (streams, arguments.format) {
        (true, _) => print("\n")?,
        (false, Format::Table) => print(&format!("{}\n", reply.text.trim_end()))?,
        (false, Format::Json) => print(&format!("{}\n", told(&profile, &reply)))?,
    }
    match reply.stop {
        Stop::End => Ok(()),
        Stop::Length => {
            eprintln!("assayd: the answer was cut off at the profile's max_tokens");
            Err(Failure::Problems)
        }
        Stop::Refusal => {
            eprintln!("assayd: the model refused");
            Err(Failure::Problems)
        }
    }
}

fn profile(settings: &Settings, asked: Option<&str>) -> Result<String, Failure> {
    let known: Vec<&str> = settings.profiles.keys().map(String::as_str).collect();
    match (asked.or(settings.environment.profile.as_deref()), known.as_slice()) {
        (Some(name), _) if known.contains(&name) => Ok(name.to_owned()),
        (Some(name), _) => {
            let hint = text::nearest(name, known.iter().copied()).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
            Err(Failure::Usage(format!("there is no profile `{}`{hint}", text::one_line(name, 64))))
        }
        (None, [only]) => Ok((*only).to_owned()),
        (None, []) => Err(Failure::Usage("assayd.yaml has no `profiles`".to_owned())),
        (None, _) => Err(Failure::Usage(format!("--profile is needed: {}", known.join(", ")))),
    }
}

fn prompt(given: Option<&str>) -> Result<String, Failure> {
    match given {
        Some(text) if text != "-" => Ok(text.to_owned()),
        _ => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text)?;
            std::io::stdout().flush()?;
            Ok(text)
        }
    }
}

fn schema(path: &std::path::Path) -> Result<Value, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    let schema = serde_json::from_str(&text).map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    jsonschema::meta::validate(&schema).map_err(|error| Failure::Usage(format!("{}: no JSON Schema: {error}", path.display())))?;
    Ok(schema)
}

fn told(profile: &str, reply: &Reply) -> Value {
    json!({
        "profile": profile, "text": reply.text, "stop": match reply.stop { Stop::End => "end", Stop::Length => "length", Stop::Refusal => "refusal" },
        "provider": reply.usage.provider, "model": reply.usage.model, "input_tokens": reply.usage.input_tokens, "output_tokens": reply.usage.output_tokens,
        "cost_usd": reply.usage.cost_usd, "latency_ms": reply.usage.latency_ms, "cached": reply.cached, "id": reply.id,
    })
}

/// Beside a daemon, the daemon does it: one process keeps the books.
async fn by_daemon(settings: &Settings, address: &str, profile: &str, question: &Question) -> Result<Reply, Failure> {
    let mut messages: Vec<Value> = question.system.iter().map(|system| json!({ "role": "system", "content": system })).collect();
    messages.extend(question.messages.iter().map(|message| json!({ "role": message.role, "content": message.text })));
    let mut body = json!({ "model": profile, "messages": messages });
    if let Some(schema) = &question.schema {
        body["response_format"] = json!({ "type": "json_schema", "json_schema": { "name": "answer", "schema": schema } });
    }
    let http = reqwest::Client::builder().no_proxy().build().map_err(anyhow::Error::from)?;
    let mut call = http.post(format!("http://{address}/v1/chat/completions")).json(&body);
    if let Some(auth) = &settings.auth {
        use crate::util::secret::ExposeSecret;
        call = call.bearer_auth(auth.token.expose_secret());
    }
    let answer = call.send().await.map_err(|error| anyhow::Error::new(error).context("asking the daemon"))?;
    let failed = !answer.status().is_success();
    let answer: Value = answer.json().await.map_err(|error| anyhow::Error::new(error).context("reading the daemon's answer"))?;
    if failed {
        let message = answer.pointer("/error/message").and_then(Value::as_str).unwrap_or("no reason was given");
        return Err(Failure::Error(anyhow::anyhow!("{}", text::one_line(message, 500))));
    }
    let choice = &answer["choices"][0];
    Ok(Reply {
        text: choice["message"]["content"].as_str().unwrap_or_default().to_owned(),
        stop: match choice["finish_reason"].as_str() {
            Some("length") => Stop::Length,
            Some("content_filter") => Stop::Refusal,
            _ => Stop::End,
        },
        usage: crate::model::Usage {
            model: answer["model"].as_str().map(str::to_owned),
            input_tokens: answer["usage"]["prompt_tokens"].as_u64(),
            output_tokens: answer["usage"]["completion_tokens"].as_u64(),
            ..crate::model::Usage::default()
        },
        id: answer["id"].as_str().map(str::to_owned),
        cached: false,
    })
}
