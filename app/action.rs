//! Everything a user can do. Views return actions; `App` applies them at the end of the frame, to the window's own state or as
//! engine commands, so that no view changes anything while another one draws.

use std::path::PathBuf;

use statescope_engine::protocol::{Device, ModelSource, TokenId};
use statescope_engine::sampler::Sampling;

use crate::selection::{Hover, TimeAxis};

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    // Model
    Load(ModelSource),
    OpenFolder,
    OpenFile,
    /// A folder or a file that was chosen.
    Opened(PathBuf),
    CancelLoading,
    // Run
    /// Reads the prompt afresh if it changed since it was last read, then makes tokens.
    Run,
    Pause,
    Stop,
    StepForward,
    StepBack,
    SetPrompt(String),
    ReadPrompt,
    SetSampling(Sampling),
    SetTokensToMake(usize),
    SetSpeed(Option<f32>),
    /// Goes back to the pinned token and goes on from there.
    ContinueFromHere,
    /// What the weights are held in, none for the file's own; loads the model again.
    SetDtype(Option<String>),
    /// Where to compute; loads the model again.
    SetDevice(Device),
    Force {
        position: usize,
        token: TokenId,
    },
    // Looking
    Hover(Hover),
    SelectLayer(usize),
    /// A mixer of a layer that has several.
    SelectPart(usize),
    SelectHead(usize),
    SelectChannel(Option<usize>),
    /// Pins a token; None follows the newest.
    SelectToken(Option<usize>),
    SelectCell {
        query: usize,
        key: usize,
    },
    ExtendTo(usize),
    Release,
    SetTimeAxis(TimeAxis),
    // Window
    ToggleTheme,
    TogglePresentation,
    ToggleHelp,
    ToggleCommands,
    ResetLayout,
    Maximise(crate::view::ViewKind),
    ShowView(crate::view::ViewKind),
    HideView(crate::view::ViewKind),
    /// Opens the explanation of a panel.
    Explain(crate::view::ViewKind),
    DismissError,
    /// A line at the bottom for a moment.
    Note(String),
    Copy(String),
    /// Writes a view's data; the file is asked for.
    ExportCsv {
        name: String,
        csv: String,
    },
}
