//! The document of all fields is made from the tables that requests are read by.

use tidemill_api::{anthropic, fields, openai, responses};

const DOCUMENT: &str = include_str!("../../../docs/api-fields.md");

const BEGINNING: &str = "\
# The fields of requests

What becomes of each field of a request. Made from the tables that the server reads requests by.

* *honoured*: it does what its API says.
* *accepted without effect*: it asks nothing of the answer.
* *refused*: the answer would be another one, so the request is answered with 400, which names the field.
* A field that is not listed is taken, and named in the answer's header `x-tidemill-ignored`. With
  `serve --strict` it is answered with 400.
";

#[test]
fn the_document_is_that_of_the_tables() {
    let tables = [
        ("Chat Completions", openai::CHAT_FIELDS),
        ("Completions", openai::COMPLETION_FIELDS),
        ("Responses", responses::FIELDS),
        ("Messages", anthropic::FIELDS),
    ];
    let mut text = BEGINNING.to_owned();
    for (name, table) in tables {
        assert!(table.iter().all(|field| !field.note.contains('|')), "a note would end its cell");
        let paths: std::collections::HashSet<&str> = table.iter().map(|field| field.path).collect();
        assert_eq!(paths.len(), table.len(), "{name} has a field twice");
        text.push_str(&format!("\n## {name}\n\n{}", fields::markdown(table)));
    }
    let made = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("api-fields.md");
    std::fs::write(&made, &text).unwrap();
    assert!(text == DOCUMENT, "the tables have changed; copy {} to docs/", made.display());
}
