document.querySelectorAll("th").forEach(function(th){
var button=document.createElement("button");button.textContent=th.textContent;button.title="sort";th.replaceChildren(button);
button.onclick=function(){
var up=th.getAttribute("aria-sort")!=="ascending",at=th.cellIndex,body=th.closest("table").tBodies[0];
th.parentNode.querySelectorAll("th").forEach(function(other){other.removeAttribute("aria-sort")});
th.setAttribute("aria-sort",up?"ascending":"descending");
var key=function(row){return row.cells[at].textContent.replace("\u2212","-")};
var rows=Array.from(body.rows).sort(function(a,b){
var x=key(a),y=key(b),d=parseFloat(x)-parseFloat(y);
return isNaN(d)?x.localeCompare(y):d});
if(!up){rows.reverse()}
rows.forEach(function(row){body.appendChild(row)})}});
