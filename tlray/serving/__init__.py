"""The HTTP endpoint: models of the registry behind Ray Serve. Start it with `tlray.serving.deploy.run`.

protocol.py   what goes over the wire: requests taken apart, answers, errors
page.py       the documentation page, self-contained
app.py        the HTTP application and its deployment; never imports torch
model.py      one deployment per model: dynamic batching around a predictor
deploy.py     references -> application -> a running server
"""
