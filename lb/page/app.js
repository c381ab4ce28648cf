// SPDX-License-Identifier: Apache-2.0
// The console: takes the live stream of one gateway and keeps every view up to date.

import { ConnectionsView } from './connections.js';
import { Clusters } from './clusters.js';
import { EventsView } from './events.js';
import { History } from './history.js';
import { NodesView } from './nodes.js';
import { RingView } from './ring.js';
import { ServicesView } from './services.js';
import { assignColours } from './colours.js';
import { h, reconcile, text } from './dom.js';
import { scaled, whole } from './format.js';
import { updateCounters } from './counters.js';

const EVENTS_ASKED = 200;
const CLOCK_MS = 1000;
const $ = (id) => document.getElementById(id);

const views = {
  ring: new RingView($('ring')),
  nodes: new NodesView($('nodes')),
  services: new ServicesView($('services')),
  events: new EventsView($('events')),
  connections: new ConnectionsView($('connections')),
};

let state = fresh();
let endStream = () => {};
let drawing = false;

function fresh() {
  return { status: null, nodes: [], vips: [], services: [], backends: [], counters: [], history: new History(), away: null, lbd: null, heard: 0 };
}

const clusters = new Clusters($('clusters'), $('add-cluster'), connect);
setTheme(localStorage.getItem('rainlb.theme'));
$('theme').addEventListener('click', () => setTheme(isDark() ? 'light' : 'dark'));
setInterval(tick, CLOCK_MS);
clusters.show('');

function connect(api) {
  endStream();
  state = fresh();
  views.events.clear();
  views.nodes.connect(api);
  views.services.connect(api);
  views.connections.connect(api);
  endStream = api.stream(receive, (problem) => {
    state.away = problem;
    draw();
    if (problem === null) catchUp(api);
  });
  draw();
}

/** Events that happened while nobody listened. */
async function catchUp(api) {
  try {
    views.events.add(await api.get(`/v1/events?limit=${EVENTS_ASKED}`));
  } catch {
    // the stream's own state tells that the gateway has trouble
  }
}

function receive(kind, data) {
  state.heard = Date.now();
  if (kind === 'event') views.events.add([data]);
  else if (kind === 'link') state.lbd = data;
  else state[kind] = data;
  if (kind === 'nodes') {
    assignColours(data.map((node) => node.name));
    views.events.add([]);
  }
  if (kind === 'status') clusters.named(data.cluster);
  draw();
}

/** State is only sent when it changes: the history is sampled by the clock. */
function tick() {
  if (isLive()) {
    for (const node of state.nodes) state.history.add(`node ${node.name}`, node.state === 'gone' ? 0 : node.packets_per_s);
    for (const row of state.services) state.history.add(`service ${row.name}`, row.cluster_traffic.packets_per_s);
  }
  draw();
}

function isLive() {
  return state.away === null && state.lbd?.lbd !== false && state.status !== null;
}

/** Once per frame at most, however many events came. */
function draw() {
  if (drawing) return;
  drawing = true;
  // A page in the background gets no frames, and needs none.
  requestAnimationFrame(() => {
    drawing = false;
    paint();
  });
}

function paint() {
  const live = isLive();
  document.body.classList.toggle('stale', !live);
  drawAway(live);
  drawHealth(live);
  drawTiles();
  views.ring.update(state.status, state.nodes, live);
  views.nodes.update(state.nodes, state.vips, state.history, state.status?.node);
  views.services.update(state.services, state.backends, state.history);
  updateCounters($('counters'), state.counters);
  text($('traffic-hint'), trafficHint());
  document.title = state.status ? `${live ? '' : '⚠ '}${state.status.cluster} · rainlb` : 'rainlb';
}

/** Rates are sums over the gateways; said only where some of those in the view have not told theirs. */
function trafficHint() {
  const told = state.services[0]?.cluster_traffic.gateways ?? 0;
  const members = state.status?.view?.members.length ?? 1;
  return told && told < members ? `Rates are those of ${told} of ${members} gateways: the others have not told theirs.` : '';
}

function drawAway(live) {
  const box = $('away');
  box.hidden = live || (state.status === null && state.away === null && state.lbd === null);
  if (live) return;
  // What browsers say of a foreign host that does not answer, or not to this page, tells nobody what to look at.
  const where = clusters.current && !state.heard ? ` Does ${clusters.current} answer, with a certificate this browser knows, and is ${location.origin} in its allow_origins?` : '';
  const why = state.away !== null ? `No connection: ${state.away}.${where} Trying again …` : (state.lbd?.message ?? 'Waiting for the gateway …');
  const age = state.heard && state.away !== null ? ` What you see is ${Math.round((Date.now() - state.heard) / 1000)} s old.` : '';
  text(box, why + age);
}

/** The worst of what is known, in words. */
function judge() {
  const out = state.nodes.filter((node) => node.state !== 'in_service');
  const homeless = state.vips.filter((vip) => !vip.owners.length);
  const dead = state.services.filter((row) => row.backend_count && !row.backends_up);
  const down = state.backends.filter((row) => row.state === 'down');
  const alarms = state.counters.filter((row) => row.alarming && row.packets_per_s);
  if (homeless.length) return ['bad', `${homeless.length} VIPs held by nobody`];
  if (dead.length) return ['bad', `${dead[0].name} has no backend`];
  if (alarms.length) return ['some', `${alarms[0].reason.replaceAll('_', ' ')}: ${scaled(alarms[0].packets_per_s)}/s`];
  if (out.length) return ['some', `${out.map((node) => node.name).join(', ')} out of service`];
  if (down.length) return ['some', `${down.length} backends down`];
  return ['good', 'all is well'];
}

function drawHealth(live) {
  const [kind, words] = live ? judge() : ['bad', 'no live data'];
  text($('health'), words);
  $('health').className = `health ${kind}`;
}

function drawTiles() {
  const sum = (rows, pick) => rows.reduce((total, row) => total + (pick(row) ?? 0), 0);
  const serving = state.nodes.filter((node) => node.state === 'in_service').length;
  const owned = state.vips.filter((vip) => vip.owners.length).length;
  const up = state.backends.filter((row) => row.state === 'up').length;
  const tiles = [
    ['Gateways', `${serving} / ${state.nodes.length}`, serving === state.nodes.length ? 'good' : 'some'],
    ['VIPs held', `${owned} / ${state.vips.length}`, owned === state.vips.length ? 'good' : 'bad'],
    ['Backends up', `${up} / ${state.backends.length}`, up === state.backends.length ? 'good' : 'some'],
    ['Packets/s', scaled(sum(state.nodes, (node) => node.packets_per_s)), ''],
    ['Bit/s', scaled(sum(state.nodes, (node) => node.bits_per_s)), ''],
    ['Connections', whole(Math.max(0, ...state.nodes.map((node) => node.connections ?? 0))), ''],
    ['Configuration', state.status ? `v${state.status.config_version}` : '–', ''],
  ];
  reconcile($('tiles'), tiles, ([name]) => name, ([name]) => h('div', { class: 'tile' }, h('span', { class: 'name' }, name), h('span', { class: 'value' })),
    (tile, [, value, kind]) => {
      tile.className = `tile ${kind}`;
      text(tile.lastElementChild, value);
    });
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
}

function setTheme(theme) {
  if (!theme) return;
  document.documentElement.dataset.theme = theme;
  localStorage.setItem('rainlb.theme', theme);
}
