(() => {
  const at = id => document.getElementById(id), s = v => v === undefined ? '' : `${Math.round(v)} s`;
  const signed = v => (v > 0 ? '+' : '') + v.toFixed(3).replace('-', '−');
  const fill = (body, rows, number) => body.replaceChildren(...rows.map(cells => {
    const row = document.createElement('tr');
    cells.forEach((cell, k) => { const td = document.createElement(k ? 'td' : 'th');
      if (cell instanceof Node) td.append(cell); else td.textContent = cell;
      if (number(k)) td.className = 'n'; row.append(td); });
    return row; }));
  const bar = (done, total) => { const p = document.createElement('progress'); p.max = total || 1; p.value = done; return p; };
  const events = new EventSource('events');
  events.onmessage = message => {
    const run = JSON.parse(message.data), spent = run.seconds || {}, planned = run.planned_seconds || {};
    const kinds = Object.entries(run.progress || {});
    const sum = name => kinds.reduce((all, [, c]) => all + c[name], 0);
    at('status').textContent = `The run is ${run.status || 'starting'}: ${sum('done')} of ${sum('total')} artifacts are there.`;
    fill(at('progress'), kinds.map(([kind, c]) => [kind, bar(c.done, c.total), c.done, c.total, c.running, c.failed, s(spent[kind]), s(planned[kind])]), k => k > 1);
    fill(at('effects'), run.effects.map(e => [e.name, signed(e.estimate), e.low === null ? '' : `[${signed(e.low)}, ${signed(e.high)}]`, e.students]), k => k === 1 || k === 3);
    const notes = (run.warnings || []).concat((run.failed || []).map(f => `${f.what}: ${f.why}`));
    at('notes').replaceChildren(...notes.map(text => { const li = document.createElement('li'); li.textContent = text; return li; }));
  };
  events.addEventListener('done', () => { events.close(); location.reload(); });
  events.onerror = () => { events.close();
    at('status').textContent = 'The process of the run has ended. Where it was interrupted, the same command goes on with it; where it was done, its page lies in its folder.'; };
})();
