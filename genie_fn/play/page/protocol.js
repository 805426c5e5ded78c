// The world behind this page: a server at the other end of a socket, or the graphs that the page holds itself. Both
// understand the same messages.

import * as local from "./local.js";
import * as server from "./server.js";

export const isHere = local.isHere;
export const { connect, upload, render, strip } = local.isHere ? local : server;
