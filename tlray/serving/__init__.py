"""The HTTP endpoint: models of the registry behind Ray Serve. Start it with `tlray.serving.deploy.run`.

protocol.py    bodies of requests and answers, and the form of every error
parameters.py  checks of query parameters
page.py        the documentation page
routes.py      all routes
endpoints.py   the served models as the routes use them; limits on bodies and time
app.py         the HTTP application and its deployment; never imports torch
model.py       one deployment per model: dynamic batching around a predictor
gallery.py     the enrolled people of a face recognition model
deploy.py      from the names of models to a running server
"""
