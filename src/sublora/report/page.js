(() => {
  const plain = c => c.textContent.replace(/[−–]/g, '-').replace(/[ ,●†‡×%]/g, '').trim();
  const value = c => { const n = parseFloat(plain(c).replace(/^[<+[]/, '')); return isNaN(n) ? null : n; };
  const order = (a, b) => { const x = value(a), y = value(b);
    return x !== null && y !== null ? x - y : x !== null ? -1 : y !== null ? 1 : plain(a).localeCompare(plain(b)); };
  const dress = root => root.querySelectorAll('table.fit').forEach(table => {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], rows = [...body.rows];
    table.classList.add('cards');
    rows.forEach(row => [...row.cells].forEach((c, k) => { c.dataset.head = heads[k].textContent; }));
    heads.forEach((head, k) => {
      const button = document.createElement('button');
      button.append(...head.childNodes); head.append(button);
      button.addEventListener('click', () => {
        const down = head.getAttribute('aria-sort') !== 'descending';
        heads.forEach(h => h.removeAttribute('aria-sort'));
        head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
        const sorted = [...rows].sort((a, b) => order(a.cells[k], b.cells[k]) * (down ? -1 : 1));
        body.append(...sorted);
      });
    });
    if (rows.length < 8) return;
    const label = document.createElement('label'), input = document.createElement('input'), count = document.createElement('span');
    input.type = 'search'; input.placeholder = 'words, all of them'; count.setAttribute('role', 'status');
    label.className = 'filter'; label.append('Filter rows ', input); label.append(' ', count);
    input.addEventListener('input', () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean); let shown = 0;
      rows.forEach(row => { const text = row.textContent.toLowerCase();
        row.hidden = !words.every(w => text.includes(w)); shown += !row.hidden; });
      count.textContent = words.length ? `${shown} of ${rows.length}` : '';
    });
    table.parentElement.before(label);
  });
  const open = () => { const at = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (!at) return;
    for (let e = at; e; e = e.parentElement) if (e.tagName === 'DETAILS') e.open = true;
    at.scrollIntoView(); };
  dress(document); open(); addEventListener('hashchange', open);
})();
