//! One look at a prompt in Langfuse (`GET /api/public/v2/prompts/NAME`).

use std::{collections::BTreeSet, time::Duration};

use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    connections::{Langfuse, segment},
    model::{ChatTurn, PromptRef, PromptText, PromptVersion},
    util::{
        http::{self, HttpError},
        text::one_line,
    },
};

/// Of a look while there is something to judge with: a run does not wait long for news.
pub(super) const BRIEF: Duration = Duration::from_secs(5);

/// Why a look found nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// Langfuse has no such prompt, or none that can be judged with, or refuses the keys: who may no longer read it may no
    /// longer judge with it. Another look finds the same until somebody acts.
    None(String),
    /// Langfuse did not say.
    Unavailable(String),
}

/// What is read of the answer; it may gain fields.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    version: u32,
    #[serde(default)]
    labels: Vec<String>,
    prompt: Value,
    #[serde(default)]
    resolution_graph: Value,
}

pub(super) async fn read(langfuse: &Langfuse, prompt: &PromptRef) -> Result<PromptVersion, Fault> {
    let path = format!("/v2/prompts/{}", segment(&prompt.name));
    let (selector, value) = prompt.selector();
    let query = [(selector, value)];
    let answer = langfuse.http().send(|| langfuse.request(Method::GET, &path).query(&query), |answer| http::json::<Answer>(&answer)).await;
    let answer = answer.map_err(|error| fault(prompt, &error))?;
    let text = text(answer.prompt).map_err(|fault| Fault::None(format!("the prompt `{prompt}` (v{}) cannot be asked: {fault}", answer.version)))?;
    let mut made_of = BTreeSet::new();
    names(&answer.resolution_graph, &mut made_of);
    made_of.remove(&prompt.name);
    Ok(PromptVersion { version: answer.version, labels: answer.labels, made_of, prompt: text })
}

fn fault(prompt: &PromptRef, error: &HttpError) -> Fault {
    match error {
        HttpError::Status { status: 404, body, .. } => {
            let (selector, value) = prompt.selector();
            Fault::None(format!("Langfuse (connection `{}`) has no prompt `{}` with {selector} {value}: {body}", prompt.connection, prompt.name))
        }
        // A prompt composed of others in a circle, or of one that is gone.
        HttpError::Status { status: 400 | 422, body, .. } => Fault::None(format!("Langfuse cannot make up the prompt `{prompt}`: {body}")),
        HttpError::Status { status: 401 | 403, .. } => {
            Fault::None(format!("Langfuse refuses the keys of connection `{}`, so the prompt `{prompt}` cannot be read: {error}", prompt.connection))
        }
        error => Fault::Unavailable(format!("Langfuse: {error}")),
    }
}

/// Every prompt in the graph of what a prompt is composed of: it holds objects with a `name`, in a form of Langfuse's own.
fn names(graph: &Value, found: &mut BTreeSet<String>) {
    match graph {
        Value::Object(map) => {
            found.extend(map.get("name").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| names(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| names(value, found)),
        _ => {}
    }
}

/// A text, or the messages of a chat.
fn text(prompt: Value) -> Result<PromptText, String> {
    let turns = match prompt {
        Value::String(text) => return Ok(PromptText::Text(text)),
        Value::Array(turns) => turns,
        _ => return Err("it is neither a text nor a chat".to_owned()),
    };
    let turn = |turn: Value| {
        if turn["type"] == "placeholder" {
            let name = one_line(turn["name"].as_str().unwrap_or_default(), 60);
            return Err(format!("its placeholder `{name}` stands for messages, and a judge has none to put there"));
        }
        match (turn["role"].as_str(), turn["content"].as_str()) {
            (Some(role), Some(content)) => Ok(ChatTurn { role: role.to_owned(), content: content.to_owned() }),
            _ => Err("a message of it has no role or no text".to_owned()),
        }
    };
    turns.into_iter().map(turn).collect::<Result<_, _>>().map(PromptText::Chat)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_graph_names_all_that_a_prompt_is_made_of() {
        let graph = json!({ "root": { "id": "1", "name": "judge", "version": 2 },
            "dependencies": { "1": [{ "id": "2", "name": "tone", "version": 1 }], "2": [{ "id": "3", "name": "style/base", "version": 4 }] } });
        let mut found = BTreeSet::new();
        names(&graph, &mut found);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["judge", "style/base", "tone"]);
    }

    #[test]
    fn refused_keys_leave_nothing_to_judge_with_and_an_outage_does_not() {
        let prompt = PromptRef::new("default", "judge").unwrap();
        let of = |status| fault(&prompt, &HttpError::Status { status, body: String::new(), retry_after: None, headers: Box::default() });
        for status in [400, 401, 403, 404, 422] {
            assert!(matches!(of(status), Fault::None(_)), "{status}");
        }
        for status in [408, 429, 500, 503] {
            assert!(matches!(of(status), Fault::Unavailable(_)), "{status}");
        }
    }

    #[test]
    fn texts_and_chats_are_read_and_placeholders_are_not() {
        assert_eq!(text(json!("Rate")), Ok(PromptText::Text("Rate".to_owned())));
        let turn = ChatTurn { role: "user".to_owned(), content: "Rate".to_owned() };
        assert_eq!(text(json!([{ "type": "chatmessage", "role": "user", "content": "Rate" }])), Ok(PromptText::Chat(vec![turn])));
        assert!(text(json!([{ "type": "placeholder", "name": "history" }])).unwrap_err().contains("`history`"));
        for wrong in [json!(7), json!([{ "role": "user" }]), json!([7])] {
            assert!(text(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
