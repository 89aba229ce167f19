use std::sync::Arc;

use axum::{
    extract::{Path, RawQuery, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::{Langfuse, error, reads::Query, through};

/// A prompt with its versions, the first one first.
#[derive(Debug, Clone)]
pub(super) struct Prompt {
    name: String,
    versions: Vec<(Value, Vec<String>)>,
}

/// What signs the webhooks.
pub const WEBHOOK_SECRET: &str = "lf-whsec_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

impl Langfuse {
    /// A new version with these labels, which other versions lose. Text, or an array of messages.
    pub fn put_prompt(&self, name: &str, prompt: Value, labels: &[&str]) -> u32 {
        let mut state = self.state.lock().unwrap();
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        let at = state.prompts.iter().position(|known| known.name == name).unwrap_or_else(|| {
            state.prompts.push(Prompt { name: name.to_owned(), versions: Vec::new() });
            state.prompts.len() - 1
        });
        let versions = &mut state.prompts[at].versions;
        versions.iter_mut().for_each(|(_, carried)| carried.retain(|label| !labels.contains(label)));
        versions.push((prompt, labels));
        versions.len() as u32
    }

    pub fn delete_prompt(&self, name: &str) {
        self.state.lock().unwrap().prompts.retain(|prompt| prompt.name != name);
    }

    /// How often a prompt was asked for.
    pub fn prompt_reads(&self) -> usize {
        self.state.lock().unwrap().prompt_reads
    }
}

/// An event as Langfuse sends it of a new version.
pub fn prompt_event(id: &str, name: &str, version: u32) -> Value {
    json!({
        "id": id, "timestamp": "2026-11-01T10:30:00.000Z", "type": "prompt-version", "apiVersion": "v1", "action": "created",
        "user": { "name": "Jane <!channel> Doe", "email": "jane@example.com" },
        "prompt": { "id": "p1", "name": name, "version": version, "projectId": "p1", "createdBy": "u1", "labels": ["production", "latest"], "prompt": "Rate it.",
                    "type": "text", "config": {}, "commitMessage": null, "tags": [], "createdAt": "2026-11-01T10:30:00.000Z", "updatedAt": "2026-11-01T10:30:00.000Z" },
    })
}

/// The header that Langfuse signs a body with.
pub fn signature(secret: &str, time: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{time}.").as_bytes());
    mac.update(body);
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={time},v1={hex}")
}

pub(super) async fn prompt(State(langfuse): State<Arc<Langfuse>>, headers: HeaderMap, Path(name): Path<String>, RawQuery(raw): RawQuery) -> Response {
    if let Some(refusal) = langfuse.refuses(&headers) {
        return refusal;
    }
    langfuse.state.lock().unwrap().prompt_reads += 1;
    let query = Query::parse(raw);
    let answer = through(&langfuse.prompts, || langfuse.read_prompt(&name, &query)).await;
    langfuse.pulse.beat();
    answer
}

impl Langfuse {
    fn read_prompt(&self, name: &str, query: &Query) -> Result<Value, Response> {
        let (version, label) = (query.get("version"), query.get("label"));
        if version.is_some() && label.is_some() {
            return Err(error(StatusCode::BAD_REQUEST, "Cannot specify both version and label", Some("InvalidRequestError")));
        }
        let version: Option<usize> = match version.map(str::parse) {
            None => None,
            Some(Ok(version)) => Some(version),
            Some(Err(_)) => return Err(error(StatusCode::BAD_REQUEST, "Invalid request data", None)),
        };
        let label = label.unwrap_or("production");
        let state = self.state.lock().unwrap();
        let versions = state.prompts.iter().find(|prompt| prompt.name == name).map(|prompt| prompt.versions.as_slice()).unwrap_or_default();
        let last = versions.len();
        let found = (1..).zip(versions).find(|(at, (_, labels))| match version {
            Some(version) => version == *at,
            None => labels.iter().any(|carried| carried == label) || label == "latest" && *at == last,
        });
        let Some((at, (prompt, labels))) = found else {
            let wanted = version.map_or_else(|| format!("label '{label}'"), |version| format!("version {version}"));
            return Err(error(StatusCode::NOT_FOUND, &format!("Prompt not found: '{name}' with {wanted}"), Some("LangfuseNotFoundError")));
        };
        let (prompt, graph) = composed(prompt, name, &state.prompts);
        let kind = if prompt.is_string() { "text" } else { "chat" };
        let answer = json!({
            "id": format!("{name}-{at}"), "createdAt": "2026-11-01T00:00:00.000Z", "updatedAt": "2026-11-01T00:00:00.000Z", "projectId": "p1", "createdBy": "u1",
            "name": name, "version": at, "type": kind, "prompt": prompt, "config": {}, "labels": labels, "tags": [], "commitMessage": null,
            "resolutionGraph": graph, "isActive": null,
        });
        // A fake that answers what the real one does not would show nothing.
        assert_eq!(self.prompt_answer.faults(&answer), Vec::<String>::new());
        Ok(answer)
    }
}

/// A text with the prompts in it that it names, as far as there are such, and the graph of them.
fn composed(prompt: &Value, name: &str, prompts: &[Prompt]) -> (Value, Value) {
    let Some(mut text) = prompt.as_str().map(str::to_owned) else { return (prompt.clone(), Value::Null) };
    let mut parts = Vec::new();
    for part in prompts {
        let tag = format!("@@@langfusePrompt:name={}|label=production@@@", part.name);
        let found = part.versions.iter().position(|(_, labels)| labels.iter().any(|label| label == "production"));
        if let Some(at) = found.filter(|_| text.contains(&tag)) {
            text = text.replace(&tag, part.versions[at].0.as_str().unwrap_or_default());
            parts.push(json!({ "name": part.name, "version": at + 1, "id": format!("{}-{}", part.name, at + 1) }));
        }
    }
    let graph = json!({ "root": { "name": name, "version": 1, "id": "root" }, "dependencies": { "root": parts } });
    (json!(text), if parts.is_empty() { Value::Null } else { graph })
}
