//! Writes annotations into a Node's manifest. In YAML in plain block style every other byte stays
//! as it is; in other forms every other value does.
//!
//! Pure: text goes in, text comes out. The result is read back and compared: unless it differs from
//! the input in the annotations alone, it is refused. [`super::yaml`] edits lines; where that is
//! not possible (flow style, anchors), this one document is written anew.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::document::{Document, Format, read, split};
use super::yaml;

/// Annotations to set. One without a value is removed.
pub type Annotations = BTreeMap<String, Option<String>>;

/// Why a text could not be edited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EditError {
    /// No document in it is this node's.
    NoNode,
    /// The node's document has a form in which an edit would change more than the annotations.
    Form,
}

/// The text with the annotations of the Node of this name set; none if they are set already.
///
/// # Errors
/// [`EditError`].
pub fn edit(text: &str, format: Format, node: &str, annotations: &Annotations) -> Result<Option<String>, EditError> {
    for document in split(text, format) {
        let part = &text[document.range.clone()];
        let Ok(before) = read(part, format) else { continue };
        let mut after = before.clone();
        let Some(found) = find_node(&mut after, node) else { continue };
        set(found, annotations).ok_or(EditError::Form)?;
        if after == before {
            return Ok(None);
        }
        let changed = match format {
            Format::Yaml => edited_yaml(part, &before, node, annotations, &after),
            Format::Json => rewritten(part, &after, format),
        };
        return changed.map(|changed| Some(replaced(text, &document, &changed))).ok_or(EditError::Form);
    }
    Err(EditError::NoNode)
}

/// The document edited line by line. It is written anew if a line edit is not possible or changes
/// more than the annotations.
fn edited_yaml(part: &str, before: &Value, node: &str, annotations: &Annotations, after: &Value) -> Option<String> {
    // The items of a list may have any indentation, so only a document that is a Node itself is
    // edited by line.
    let is_node_itself = is_node(before, node);
    is_node_itself
        .then(|| yaml::edit(part, annotations))
        .flatten()
        .filter(|changed| read(changed, Format::Yaml).as_ref() == Ok(after))
        .or_else(|| rewritten(part, after, Format::Yaml))
}

/// The document written anew, read back and compared.
fn rewritten(part: &str, after: &Value, format: Format) -> Option<String> {
    let mut text = match format {
        // The document's text begins right after "---".
        Format::Yaml => format!(
            "{}{}",
            if part.starts_with(['\n', '\r']) { "\n" } else { "" },
            serde_yaml_ng::to_string(after).ok()?
        ),
        Format::Json if part.trim().contains('\n') => serde_json::to_string_pretty(after).ok()?,
        Format::Json => serde_json::to_string(after).ok()?,
    };
    if format == Format::Yaml && !part.starts_with(['\n', '\r']) && part.starts_with([' ', '\t']) {
        text.insert(0, '\n');
    }
    if part.ends_with('\n') && !text.ends_with('\n') {
        text.push('\n');
    }
    (read(&text, format).as_ref() == Ok(after)).then_some(text)
}

fn replaced(text: &str, document: &Document, changed: &str) -> String {
    let mut whole = String::with_capacity(text.len() + changed.len());
    whole.push_str(&text[..document.range.start]);
    whole.push_str(changed);
    whole.push_str(&text[document.range.end..]);
    whole
}

/// The Node of this name: the document itself, or an item of it.
fn find_node<'a>(document: &'a mut Value, node: &str) -> Option<&'a mut Value> {
    if is_node(document, node) {
        return Some(document);
    }
    if !document["kind"].as_str().is_some_and(|kind| kind == "List" || kind == "NodeList") {
        return None;
    }
    let is_typed = document["kind"] == "NodeList";
    let items = document.get_mut("items")?.as_array_mut()?;
    items.iter_mut().find(|item| is_node(item, node) || is_typed && item["metadata"]["name"] == node)
}

fn is_node(value: &Value, node: &str) -> bool {
    value["kind"] == "Node" && value["apiVersion"] == "v1" && value["metadata"]["name"] == node
}

/// Sets annotations in a Node; none if its `annotations` is not a mapping.
fn set(node: &mut Value, annotations: &Annotations) -> Option<()> {
    let metadata = node.get_mut("metadata")?.as_object_mut()?;
    if annotations.values().all(Option::is_none) && !metadata.contains_key("annotations") {
        return Some(());
    }
    let all = metadata.entry("annotations").or_insert(Value::Null);
    if all.is_null() {
        *all = Value::Object(Map::new());
    }
    let all = all.as_object_mut()?;
    for (name, value) in annotations {
        match value {
            Some(value) => {
                all.insert(name.clone(), Value::String(value.clone()));
            }
            None => {
                all.shift_remove(name);
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(name: &str, value: &str) -> Annotations {
        [(name.to_owned(), Some(value.to_owned()))].into()
    }

    const FILE: &str = "# nodes of the rack\napiVersion: v1\nkind: Node\nmetadata:\n  name: n1   # the first\nspec: {}\n---\n\
        # the second\napiVersion: v1\nkind: Node\nmetadata:\n    labels:\n        a: \"b\"   # why\n    annotations:\n        \
        # theirs\n        example.com/x: 'y'\n    name: n2\nstatus:\n    addresses: []\n...\n---\nkind: Pod\n  broken: [\n";

    #[test]
    fn comments_formatting_and_other_documents_are_kept() {
        let first = edit(FILE, Format::Yaml, "n1", &one("hauberk.io/keys", "{\"it's\":1}")).unwrap().unwrap();
        assert_eq!(
            first,
            FILE.replace(
                "metadata:\n  name: n1",
                "metadata:\n  annotations:\n    hauberk.io/keys: '{\"it''s\":1}'\n  name: n1"
            )
        );
        let second = edit(&first, Format::Yaml, "n2", &one("hauberk.io/keys", "K")).unwrap().unwrap();
        assert_eq!(
            second,
            first.replace("        example.com/x: 'y'\n", "        example.com/x: 'y'\n        hauberk.io/keys: 'K'\n")
        );
        let third = edit(&second, Format::Yaml, "n2", &one("hauberk.io/keys", "L")).unwrap().unwrap();
        assert_eq!(third, second.replace("'K'", "'L'"));
        assert_eq!(edit(&third, Format::Yaml, "n2", &one("hauberk.io/keys", "L")), Ok(None));
        let removed =
            edit(&third, Format::Yaml, "n2", &[("hauberk.io/keys".to_owned(), None)].into()).unwrap().unwrap();
        assert_eq!(removed, first);
        assert_eq!(edit(FILE, Format::Yaml, "n3", &one("a", "b")), Err(EditError::NoNode));
    }

    #[test]
    fn forms_that_lines_cannot_be_edited_in_are_written_anew_with_the_same_meaning() {
        for text in [
            "{apiVersion: v1, kind: Node, metadata: {name: n1, annotations: {a: b}}}",
            "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n",
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  annotations: {a: b}\n",
            "apiVersion: v1\nkind: Node\nmetadata:\n  annotations:\n  name: n1\n",
            "apiVersion: v1\nkind: Node\nmetadata:\n  annotations: {}\n  name: n1\n",
            "apiVersion: v1\r\nkind: Node\r\nmetadata:\r\n  name: n1\r\n",
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  annotations:\n    hauberk.io/keys: |\n      a\n\n      b\n    z: 1\n".replace("z: 1", "z: '1'").as_str(),
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  annotations:\n    \"hauberk.io/keys\": >-\n      a\n      b\n",
            "---   {apiVersion: v1, kind: Node, metadata: {name: n1}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n",
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Node\n  metadata:\n    name: n1\n",
            "apiVersion: v1\nkind: NodeList\nitems:\n- metadata:\n    name: n1\n",
            "apiVersion: v1\nkind: Node\nmetadata: &m\n  name: n1\nspec: {x: *m}\n",
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1",
        ] {
            check(text, Format::Yaml);
        }
        for text in [
            "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"n1\",\"z\":1,\"a\":2}}",
            "{\"kind\":\"x\"}\n{\n  \"apiVersion\": \"v1\",\n  \"kind\": \"Node\",\n  \"metadata\": {\"name\": \"n1\"}\n}\n{\"kind\":\"y\"}",
        ] {
            check(text, Format::Json);
        }
    }

    fn check(text: &str, format: Format) {
        let annotations = one("hauberk.io/keys", "a: 'b' \"c\" #d");
        let edited = edit(text, format, "n1", &annotations).unwrap().unwrap();
        let (before, after) = (values(text, format), values(&edited, format));
        assert_eq!(before.len(), after.len(), "{edited}");
        for (mut before, after) in before.into_iter().zip(after) {
            if let Some(node) = find_node(&mut before, "n1") {
                set(node, &annotations).unwrap();
            }
            assert_eq!(before, after, "{edited}");
        }
        assert_eq!(edit(&edited, format, "n1", &annotations), Ok(None));
    }

    fn values(text: &str, format: Format) -> Vec<Value> {
        split(text, format).into_iter().map(|d| read(&text[d.range], format).unwrap()).collect()
    }

    #[test]
    fn values_with_line_breaks_are_escaped() {
        let text = "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n";
        let value = "a\nb\t\u{1}\u{e9}";
        let edited = edit(text, Format::Yaml, "n1", &one("x", value)).unwrap().unwrap();
        assert_eq!(values(&edited, Format::Yaml)[0]["metadata"]["annotations"]["x"], value);
        assert_eq!(edited.lines().count(), 6);
    }

    proptest! {
        #[test]
        fn any_value_is_read_back_and_nothing_else_changes(value in "\\PC{0,40}", indent in 1usize..5) {
            let pad = " ".repeat(indent);
            let text = format!("apiVersion: v1\nkind: Node\nmetadata:\n{pad}annotations:\n{pad}{pad}old: x\n{pad}name: n1\nspec: {{}}\n");
            let edited = edit(&text, Format::Yaml, "n1", &one("hauberk.io/keys", &value)).unwrap().unwrap();
            prop_assert_eq!(&values(&edited, Format::Yaml)[0]["metadata"]["annotations"]["hauberk.io/keys"], &Value::String(value));
        }

        #[test]
        fn no_text_panics(text in "(apiVersion: v1|kind: Node|metadata:|name: n1|annotations:|a: b|\\{|\\}|\n|  |- |#|---|'|\"|\\||x){0,40}") {
            for format in [Format::Yaml, Format::Json] {
                let _ = edit(&text, format, "n1", &one("a", "b"));
            }
        }
    }
}
