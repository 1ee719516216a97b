#[path = "../../tests/support.rs"] mod support;
#[path = "../../tests/parity.rs"] mod parity;
#[path = "../../tests/laws.rs"] mod laws;
#[path = "../../tests/engine.rs"] mod engine;
