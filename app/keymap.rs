//! Every command with its name and key, in one table: the keyboard, the command palette and the help overlay read the same lines.

use eframe::egui::{self, Key, Modifiers};
use statescope_engine::protocol::{ModelSource, RunState};

use crate::action::Action;
use crate::selection::{Selection, TimeAxis};
use crate::store::Store;
use crate::view::ViewKind;

/// What a command may depend on.
pub struct Now<'a> {
    pub store: &'a Store,
    pub selection: &'a Selection,
}

impl Now<'_> {
    fn cursor(&self) -> usize {
        let newest = self.store.position.saturating_sub(1);
        self.selection.query.unwrap_or(newest).min(self.store.length().saturating_sub(1))
    }

    /// Moves the pin; past the newest token it stays there.
    fn pin(&self, by: isize) -> Option<Action> {
        let last = self.store.length().checked_sub(1)?;
        Some(Action::SelectToken(Some(self.cursor().saturating_add_signed(by).min(last))))
    }

    fn extend(&self, by: isize) -> Option<Action> {
        let last = self.store.length().checked_sub(1)?;
        let end = self.selection.range_end.unwrap_or_else(|| self.cursor());
        Some(Action::ExtendTo(end.saturating_add_signed(by).min(last)))
    }

    fn layer(&self, by: isize) -> Option<Action> {
        let last = self.store.model.as_ref()?.layers.len().checked_sub(1)?;
        Some(Action::SelectLayer(self.selection.layer.saturating_add_signed(by).min(last)))
    }

    fn head(&self, by: isize) -> Option<Action> {
        let layer = self.store.model.as_ref()?.layers.get(self.selection.layer)?;
        let last = layer.parts.get(self.selection.part).or(layer.parts.first())?.heads.checked_sub(1)?;
        Some(Action::SelectHead(self.selection.head.saturating_add_signed(by).min(last)))
    }

    /// The next mixer of a layer that has several, after the last the first.
    fn part(&self) -> Option<Action> {
        let parts = self.store.model.as_ref()?.layers.get(self.selection.layer)?.parts.len();
        (parts > 1).then(|| Action::SelectPart((self.selection.part + 1) % parts))
    }
}

type Shortcut = (Modifiers, Key);
type Act = Box<dyn Fn(&Now<'_>) -> Option<Action>>;
/// Group, name, how the key is written, the key, what it does.
type Line = (&'static str, &'static str, &'static str, Option<Shortcut>, fn(&Now<'_>) -> Option<Action>);

/// One command.
pub struct Entry {
    pub group: &'static str,
    pub name: String,
    /// How the key is written in help; empty if there is none.
    pub keys: &'static str,
    pub shortcut: Option<Shortcut>,
    pub act: Act,
}

const NONE: Modifiers = Modifiers::NONE;
const CTRL: Modifiers = Modifiers::COMMAND;
const SHIFT: Modifiers = Modifiers::SHIFT;

/// All commands, in the order of help.
pub fn table() -> Vec<Entry> {
    let fixed: [Line; 43] = [
        ("Run", "Run or pause", "Space", Some((NONE, Key::Space)), |now| {
            Some(if now.store.run == RunState::Running { Action::Pause } else { Action::Run })
        }),
        ("Run", "One token", ".", Some((NONE, Key::Period)), |_| Some(Action::StepForward)),
        ("Run", "One token back", ",", Some((NONE, Key::Comma)), |_| Some(Action::StepBack)),
        ("Run", "Stop", "", None, |_| Some(Action::Stop)),
        ("Run", "Read the prompt afresh", "Ctrl+Enter", Some((CTRL, Key::Enter)), |_| Some(Action::ReadPrompt)),
        ("Run", "Continue from the pinned token", "C", Some((NONE, Key::C)), |_| Some(Action::ContinueFromHere)),
        ("Look", "Follow the newest token (live)", "L", Some((NONE, Key::L)), |_| Some(Action::SelectToken(None))),
        ("Look", "Pin the token before", "←", Some((NONE, Key::ArrowLeft)), |now| now.pin(-1)),
        ("Look", "Pin the token after", "→", Some((NONE, Key::ArrowRight)), |now| now.pin(1)),
        ("Look", "Pin ten tokens before", "Ctrl+←", Some((CTRL, Key::ArrowLeft)), |now| now.pin(-10)),
        ("Look", "Pin ten tokens after", "Ctrl+→", Some((CTRL, Key::ArrowRight)), |now| now.pin(10)),
        ("Look", "Shrink or extend the range left", "Shift+←", Some((SHIFT, Key::ArrowLeft)), |now| now.extend(-1)),
        ("Look", "Shrink or extend the range right", "Shift+→", Some((SHIFT, Key::ArrowRight)), |now| now.extend(1)),
        ("Look", "Layer above", "[", Some((NONE, Key::OpenBracket)), |now| now.layer(-1)),
        ("Look", "Layer below", "]", Some((NONE, Key::CloseBracket)), |now| now.layer(1)),
        ("Look", "Layer above", "↑", Some((NONE, Key::ArrowUp)), |now| now.layer(-1)),
        ("Look", "Layer below", "↓", Some((NONE, Key::ArrowDown)), |now| now.layer(1)),
        ("Look", "Next mixer of the layer", "M", Some((NONE, Key::M)), |now| now.part()),
        ("Look", "Head before", "{", Some((SHIFT, Key::OpenBracket)), |now| now.head(-1)),
        ("Look", "Head after", "}", Some((SHIFT, Key::CloseBracket)), |now| now.head(1)),
        ("Look", "Head before", "{", Some((NONE, Key::OpenCurlyBracket)), |now| now.head(-1)),
        ("Look", "Head after", "}", Some((NONE, Key::CloseCurlyBracket)), |now| now.head(1)),
        ("Look", "Release the pin", "Esc", Some((NONE, Key::Escape)), |_| Some(Action::Release)),
        ("Look", "First token", "Home", Some((NONE, Key::Home)), |now| {
            (now.store.length() > 0).then_some(Action::SelectToken(Some(0)))
        }),
        ("Look", "Last token", "End", Some((NONE, Key::End)), |now| {
            Some(Action::SelectToken(Some(now.store.length().checked_sub(1)?)))
        }),
        ("Look", "Fit all tokens", "0", Some((NONE, Key::Num0)), |_| Some(Action::SetTimeAxis(TimeAxis::Fit))),
        ("Look", "Zoom to the range", "Z", Some((NONE, Key::Z)), |now| {
            let (a, b) = (now.selection.query?, now.selection.range_end?);
            Some(Action::SetTimeAxis(TimeAxis::Window(a.min(b) as f64..a.max(b) as f64 + 1.0)))
        }),
        ("Model", "Open a folder", "Ctrl+O", Some((CTRL, Key::O)), |_| Some(Action::OpenFolder)),
        ("Model", "Open a GGUF file", "", None, |_| Some(Action::OpenFile)),
        ("Model", "Cancel loading", "", None, |now| now.store.loading.as_ref().map(|_| Action::CancelLoading)),
        ("Window", "Commands", "Ctrl+K", Some((CTRL, Key::K)), |_| Some(Action::ToggleCommands)),
        ("Window", "Keys and help", "F1", Some((NONE, Key::F1)), |_| Some(Action::ToggleHelp)),
        ("Window", "Keys and help", "?", Some((NONE, Key::Questionmark)), |_| Some(Action::ToggleHelp)),
        ("Window", "Keys and help", "?", Some((SHIFT, Key::Slash)), |_| Some(Action::ToggleHelp)),
        ("Window", "Keys and help", "?", Some((SHIFT, Key::Questionmark)), |_| Some(Action::ToggleHelp)),
        ("Window", "Presentation size", "P", Some((NONE, Key::P)), |_| Some(Action::TogglePresentation)),
        ("Window", "Dark or light", "T", Some((NONE, Key::T)), |_| Some(Action::ToggleTheme)),
        ("Window", "Reset layout", "", None, |_| Some(Action::ResetLayout)),
        ("Run", "Full speed", "", None, |_| Some(Action::SetSpeed(None))),
        ("Run", "Teaching speed, 2 tokens/s", "", None, |_| Some(Action::SetSpeed(Some(2.0)))),
        ("Look", "Head before", "{", Some((SHIFT, Key::OpenCurlyBracket)), |now| now.head(-1)),
        ("Look", "Head after", "}", Some((SHIFT, Key::CloseCurlyBracket)), |now| now.head(1)),
        ("Window", "Dismiss the error", "", None, |now| now.store.error.as_ref().map(|_| Action::DismissError)),
    ];
    let mut entries: Vec<Entry> = fixed
        .into_iter()
        .map(|(group, name, keys, shortcut, act)| Entry {
            group,
            name: name.into(),
            keys,
            shortcut,
            act: Box::new(act),
        })
        .collect();
    const DIGITS: [(&str, Key); 9] = [
        ("1", Key::Num1),
        ("2", Key::Num2),
        ("3", Key::Num3),
        ("4", Key::Num4),
        ("5", Key::Num5),
        ("6", Key::Num6),
        ("7", Key::Num7),
        ("8", Key::Num8),
        ("9", Key::Num9),
    ];
    for (k, kind) in ViewKind::DOCKED.into_iter().enumerate() {
        let digit = DIGITS.get(k);
        entries.push(Entry {
            group: "Panels",
            name: format!("Show {}", lower(kind.name())),
            keys: digit.map_or("", |d| d.0),
            shortcut: digit.map(|d| (NONE, d.1)),
            act: Box::new(move |_| Some(Action::ShowView(kind))),
        });
        entries.push(Entry {
            group: "Panels",
            name: format!("Maximise {}", lower(kind.name())),
            keys: "",
            shortcut: None,
            act: Box::new(move |_| Some(Action::Maximise(kind))),
        });
    }
    for model in statescope_engine::builtin::list() {
        entries.push(Entry {
            group: "Model",
            name: format!("Load {}", model.name),
            keys: "",
            shortcut: None,
            act: Box::new(move |_| Some(Action::Load(ModelSource::Builtin(model.name.to_owned())))),
        });
    }
    entries
}

fn lower(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |c| c.to_lowercase().chain(chars).collect())
}

/// The commands whose keys were pressed in this frame, in order; the presses are used up. While text is being edited only keys with
/// Ctrl count, and those of the editor do not.
pub fn pressed(ctx: &egui::Context, table: &[Entry]) -> Vec<usize> {
    let editing = ctx.text_edit_focused();
    // A control reached with Tab keeps the keys that work it, an open menu the one that closes it.
    let focused = ctx.memory(|m| m.focused().is_some());
    let menu = egui::Popup::is_any_open(ctx);
    let mut hits = Vec::new();
    ctx.input_mut(|i| {
        i.events.retain(|event| {
            // The modifiers of the event, not of the frame: a slow frame may hold press and release of both.
            let egui::Event::Key { key, pressed: true, modifiers, .. } = event else { return true };
            let hit = table.iter().position(|entry| {
                entry.shortcut.is_some_and(|(pattern, k)| {
                    k == *key
                        && (modifiers.matches_exact(pattern) || modifiers.shift && !modifiers.command && is_sign(k))
                })
            });
            let Some(hit) = hit else { return true };
            let arrow = matches!(key, Key::ArrowLeft | Key::ArrowRight | Key::ArrowUp | Key::ArrowDown);
            let theirs = if menu && *key == Key::Escape {
                true
            } else if editing {
                arrow || !(modifiers.command || *key == Key::F1)
            } else {
                focused && !modifiers.command && (arrow || matches!(key, Key::Space | Key::Enter | Key::Escape))
            };
            if !theirs {
                hits.push(hit);
            }
            theirs
        });
    });
    hits
}

/// Signs that some keyboards reach with Shift and some without.
fn is_sign(key: Key) -> bool {
    matches!(key, Key::Questionmark | Key::OpenCurlyBracket | Key::CloseCurlyBracket | Key::Period | Key::Comma)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_key_means_two_things() {
        let mut seen = HashSet::new();
        for entry in table() {
            if let Some((modifiers, key)) = entry.shortcut {
                assert!(seen.insert((format!("{modifiers:?}"), key)), "{} {:?}", entry.name, key);
            }
        }
    }

    #[test]
    fn moving_the_pin_stays_inside_the_text() {
        let store = Store::default();
        let selection = Selection { query: Some(7), ..Selection::default() };
        let now = Now { store: &store, selection: &selection };
        assert_eq!((now.pin(-1), now.layer(1), now.head(1)), (None, None, None));
        assert_eq!(now.part(), None);
    }
}
