import { render } from "preact";
import { Shell } from "./shell";
import "./style.css";
import { TalkPage } from "./talk/TalkPage";

const app = document.getElementById("app")!;
// `arpo serve` marks its page
render("agent" in app.dataset ? <TalkPage /> : <Shell />, app);
